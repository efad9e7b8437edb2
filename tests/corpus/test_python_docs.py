"""The corpus `python-docs`: documentation is taken from sources that are never executed."""

import sysconfig
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import flashback
from flashback.corpus.documents import Document
from flashback.corpus.python_docs import find_modules, read_module, read_python_docs

LONG = " ".join(["These are enough words to make a document of a module."] * 5)

SOURCES = {
    "alpha/__init__.py": f'"""The package alpha. {LONG}"""',
    "alpha/beta.py": f'''"""The module beta. {LONG}"""

from pathlib import Path

Path(__file__).with_name("executed").touch()


class Outer:
    """A class with documentation."""

    class Inner:
        def method(self):
            """Does what a method does."""

        async def undocumented(self):
            pass

    def copy(self):
        """Does what a method does."""

    def terse(self):
        """Two words."""


def function():
    """Does what a function does."""
''',
    "quiet.py": '"""A module that says little."""',
    "broken.py": f'"""{LONG}"""\ndef (:',
    "nested.py": "(" * 5000,
    "alpha/tests/test_beta.py": f'"""{LONG}"""',
    "test/support.py": f'"""{LONG}"""',
    "site-packages/foreign.py": f'"""{LONG}"""',
    "notes.txt": LONG,
    "pydoc_data/topics.py": f"topics = {{'if': 'The if statement. {LONG}', 'in': ' Membership. '}}",
}


@dataclass
class Result:
    root: Path
    modules: list[tuple[str, Path]]
    documents: dict[str, Document]
    steps: list[int]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A made-up environment beside our own package, read once: it starts processes."""
    root = tmp_path_factory.mktemp("stdlib")
    for name, source in SOURCES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    latin = f'"""Caf\xe9. {LONG}"""'.encode("latin-1")
    (root / "latin.py").write_bytes(latin)
    (root / "declared.py").write_bytes(b"# coding: latin-1\n" + latin)
    (root / "surrogate.py").write_text(f'"""\\ud800 {LONG}"""')
    (root / ".#editing.py").symlink_to(root / "nowhere")
    packages = Path(flashback.__file__).parent.parent
    lib64 = tmp_path_factory.mktemp("linked") / "lib64"  # as in Fedora's virtual environments
    lib64.symlink_to(packages)
    paths = {"stdlib": str(root), "purelib": str(packages), "platlib": str(lib64)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sysconfig, "get_paths", lambda: paths)
        modules = find_modules()
    steps: list[int] = []
    documents = {one.title: one for one in read_python_docs(modules, steps.append)}
    return Result(root, modules, documents, steps)


def test_modules_are_found_by_dotted_name_without_tests_and_ourselves(result: Result) -> None:
    assert [name for name, _ in result.modules] == [
        "alpha",
        "alpha.beta",
        "broken",
        "declared",
        "latin",
        "nested",
        "pydoc_data.topics",
        "quiet",
        "surrogate",
    ]


def test_documents_are_modules_that_are_python_and_say_something(result: Result) -> None:
    assert list(result.documents) == ["alpha", "alpha.beta", "declared", "pydoc_data.topics"]
    assert [one.id for one in result.documents.values()] == [
        f"python-docs/{title}" for title in result.documents
    ]


def test_docstrings_stand_once_under_their_qualified_names(result: Result) -> None:
    module, *blocks = result.documents["alpha.beta"].text.split("\n\n")
    assert module == f"The module beta. {LONG}"
    assert blocks == [
        "Outer\nA class with documentation.",
        "Outer.Inner.method\nDoes what a method does.",
        "function\nDoes what a function does.",
    ]


def test_a_declared_encoding_is_honoured(result: Result) -> None:
    assert result.documents["declared"].text.startswith("Café. ")


def test_the_help_topics_are_read_as_texts(result: Result) -> None:
    text = f"The if statement. {LONG}" + "\n\nMembership."
    assert result.documents["pydoc_data.topics"].text == text


def test_nothing_is_executed(result: Result) -> None:
    assert not list(result.root.rglob("executed"))
    assert not list(result.root.rglob("__pycache__"))


def test_progress_adds_up_to_the_size_of_the_sources(result: Result) -> None:
    assert result.steps == [path.stat().st_size for _, path in result.modules]


def test_who_stops_reading_does_not_wait_for_the_rest(
    result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C does."""
    cancelled: list[bool] = []
    shutdown = ProcessPoolExecutor.shutdown

    def seen(self: ProcessPoolExecutor, wait: bool = True, *, cancel_futures: bool = False) -> None:
        cancelled.append(cancel_futures)
        shutdown(self, wait, cancel_futures=cancel_futures)

    monkeypatch.setattr(ProcessPoolExecutor, "shutdown", seen)
    documents = read_python_docs(result.modules)
    next(documents)
    documents.close()
    assert cancelled[0]


def test_the_standard_library_documents_itself() -> None:
    modules = dict(find_modules())
    found = read_module(("logging.handlers", modules["logging.handlers"]))
    assert found is not None
    assert (found.id, found.title) == ("python-docs/logging.handlers", "logging.handlers")
    assert "RotatingFileHandler.doRollover\nDo a rollover" in found.text
    topics = read_module(("pydoc_data.topics", modules["pydoc_data.topics"]))
    assert topics is not None
    assert len(topics.text) > 100_000
    assert not any(name == "flashback" or name.startswith("flashback.") for name in modules)
