"""The commands and the Python of docs/: commands are accepted, and what is cheap is run."""

import gzip
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from command_line import run, write_notes
from flashback.cli.main import app
from flashback.settings import RetrievalSettings
from made_files import pdf, table, write
from servers import chat_reader, serving

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [page for page in sorted(DOCS.glob("*.md")) if page.name != "cli.md"]
CHEAP = ("index", "search", "generate", "eval", "models")
"""Commands that take moments with the shipped reader and a small corpus."""


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code in a page."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `flashback …` in a page's blocks for the shell, without `flashback`."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.match(r"(?:zcat .* \| )?flashback (.*?)&?$", line):
                yield shlex.split(found[1], comments=True)


EVERY = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize("words", [words for _, words in EVERY], ids=" ".join)
def test_commands_are_accepted(words: list[str]) -> None:
    accept(words)


def accept(words: list[str]) -> None:
    """Parse a command as the command line does; it is not run."""
    command: click.Command = app
    context = app.make_context("flashback", list(words))
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, found.make_context(name, rest, parent=context)


def is_cheap(words: list[str]) -> bool:
    """Whether a command can be run here: nothing to download, nothing that takes minutes."""
    readers = [words[at + 1] for at, word in enumerate(words) if word == "--model"]
    known = {*readers} <= {"flashback-mini", "none"} and "scifact" not in " ".join(words)
    return words[0] in CHEAP and known and not {"qa", "python-docs:train"} & {*words}


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the pages index and score, which is the current one."""
    for name in ("notes", "my-texts", "texts"):
        write_notes(tmp_path / name)
    long = " ".join(f"The json module encodes value {number} to JSON." for number in range(60))
    (tmp_path / "more-texts").mkdir()
    (tmp_path / "more-texts" / "json.txt").write_text(long, "utf-8")
    (tmp_path / "manual.md").write_text("Open a file for reading with open.", "utf-8")
    write(tmp_path / "manuals" / "lamps.pdf", pdf(["The lamp burns oil."]))
    rows = [["number", "subject", "body"], ["1", "Lamp", "It does not burn."]]
    write(tmp_path / "tickets.csv", table(rows))
    (tmp_path / "questions.jsonl").write_text('{"question": "What is JSON?"}\n', "utf-8")
    lines = json.dumps({"title": "json", "text": "The json module encodes JSON."}) + "\n"
    (tmp_path / "today.jsonl").write_text(lines, "utf-8")
    for name in ("corpus.jsonl.gz", "dump.gz"):
        (tmp_path / name).write_bytes(gzip.compress(lines.encode()))
    shutil.copytree(DOCS.parent / "readers_tests", tmp_path / "readers_tests")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", sorted({page.name for page, words in EVERY if is_cheap(words)}))
def test_commands_run(name: str, corpus: Path) -> None:
    run("index", "notes", "--out", "IDX")
    for words in filter(is_cheap, commands(DOCS / name)):
        if words[0] == "index" and "--out" in words:  # each example makes its own
            shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
        dump = gzip.decompress((corpus / "dump.gz").read_bytes())
        run(*words, input=dump)


PYTHON = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    if page.name != "server.md"
    for number, block in enumerate(blocks(page, "python"))
]


@pytest.mark.usefixtures("corpus")
@pytest.mark.filterwarnings("ignore:.* passages looked at are longer")
@pytest.mark.parametrize("block", PYTHON)
def test_python_runs(block: str, chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("index", "notes", "--out", "IDX")
    own = block.replace('"smollm2"', repr(str(chat_model)))  # which is not on this machine
    exec(compile(own, "docs", "exec"), {"__name__": "docs"})
    assert capsys.readouterr().out


def test_the_client_of_the_servers_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    own = "\n".join(blocks(DOCS / "server.md", "python"))
    with serving(chat_reader(), defaults=RetrievalSettings(passage_tokens=24)) as served:
        own = own.replace("http://127.0.0.1:8000", served.url)
        exec(compile(own, "server.md", "exec"), {})
    assert capsys.readouterr().out.count("['t") > 2
