"""Retrievers by name: Python, entry points, URLs; and what is said where there is none."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import flashback
from flashback.errors import IndexFolderError, SettingsError
from flashback.retrieval.protocol import Hit
from flashback.retrieval.specs import NAMES, SCHEMES, RetrieverSpec, open_retriever
from flashback.settings import SearchOptions
from throw_away import registered

MODULE = '''
from flashback.retrieval.protocol import Hit

class Echo:
    """Finds the text that it was made with."""

    def __init__(self, text="nothing"):
        self.text = text

    def search(self, queries, options):
        return [[Hit("a", "a", "", f"{self.text}: {query}", 1.0)] for query in queries]

    @classmethod
    def loud(cls):
        return cls("LOUD")

class Deaf:
    pass

number = 5

def broken(text):
    raise OSError(f"no file\\n{text}")
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with an entry point, and modules that cannot be imported."""
    (tmp_path / "somebodys.py").write_text(MODULE)
    (tmp_path / "damaged.py").write_text("1 / 0")
    (tmp_path / "needy.py").write_text("import no_such_library")
    about = tmp_path / "somebodys-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[flashback.retrievers]\necho = somebodys:Echo\nneedy = needy:Echo\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("somebodys", "damaged", "needy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("somebodys:Echo", "nothing: q"),
        ("somebodys:Echo=a=b:c", "a=b:c: q"),
        ("somebodys:Echo=", ": q"),
        ("somebodys:Echo.loud", "LOUD: q"),
        ("echo", "nothing: q"),
        ("echo=http://there", "http://there: q"),
    ],
)
def test_python_and_entry_points_are_called(installed: Path, spec: str, text: str) -> None:
    ((hit,),) = open_retriever(spec).search(["q"], SearchOptions())
    assert hit.text == text


def test_an_index_is_a_name_too(index: Path) -> None:
    ((hit,),) = open_retriever(f"index={index}").search(["the tides of the moon"], SearchOptions())
    assert hit.title == "moon.md"
    with pytest.raises(IndexFolderError, match="no such folder"):
        open_retriever("index=elsewhere")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:make", "there is no module no_such_module"),
        ("somebodys.inner:make", "there is no module somebodys.inner"),
        ("needy:Echo", "needy needs no_such_library; install it"),
        ("needy", "needy needs no_such_library; install it"),
        ("damaged:Echo", "damaged cannot be imported: ZeroDivisionError: division by zero"),
        ("somebodys:nothing", "module 'somebodys' has no attribute 'nothing'"),
        ("somebodys:number", "found a int; expected a function or a class"),
        ("somebodys:broken=x", "it could not be made: OSError: no file x"),
        ("somebodys:broken", "it could not be made: TypeError"),
        ("somebodys:Deaf", "its factory gave a Deaf; expected an object with search"),
        ("somebodys:", "its factory gave a module|found a module|not a|expected"),
        (":make", "cannot be imported"),
        ("a b:c", "cannot be imported: ValueError: invalid format"),
        ("nonsuch", "expected package.module:factory, a URL or one of index, echo, needy"),
        ("", "there is no retriever of that name"),
        ("./IDX", r"\(an index folder: index=FOLDER\)"),
        ("index", "expected a text behind it: index=..."),
        ("gopher://host", "unknown scheme gopher://"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(installed: Path, spec: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        open_retriever(spec)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("retriever=")
    assert caught.value.for_command_line.startswith("--retriever ")


class Anything:
    """A store."""

    def __init__(self, url: str) -> None:
        self.url = url

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [[Hit("a", "a", "", self.url, 1.0)] for _ in queries]


def test_a_new_store_is_a_line() -> None:
    with registered(SCHEMES, "dict+tcp", Anything):
        opened = open_retriever("DICT+tcp://user:secret@host/pets")
    assert isinstance(opened, Anything)
    assert opened.url == "DICT+tcp://user:secret@host/pets"


def test_a_new_name_is_a_line() -> None:
    with registered(NAMES, "anything", Anything):
        assert isinstance(open_retriever("anything=x"), Anything)


def test_a_password_is_not_shown() -> None:
    url = "postgresql://user:p@ss:word@host:5432/pets?a=b@c"
    assert str(RetrieverSpec(url)) == "postgresql://user:***@host:5432/pets?a=b@c"
    with pytest.raises(SettingsError) as caught:
        open_retriever("gopher://user:secret@host")
    assert "secret" not in str(caught.value)


def test_load_takes_a_text(installed: Path) -> None:
    writer = flashback.load(retriever="somebodys:Echo=The sea", adapter=None, device="cpu")
    result = writer.generate("The sea", max_new_tokens=4)
    assert result.sources[0].text.startswith("The sea: ")
