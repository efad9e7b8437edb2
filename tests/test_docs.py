"""Documentation that cannot rot: generated help is current, examples parse and run."""

import re
import runpy
import shlex
from pathlib import Path

import click
import pytest

from command_line import run
from flashback.cli.main import app
from flashback.corpus.documents import CorpusReport
from flashback.retrieval.bm25 import IndexSettings
from flashback.retrieval.indexing import index_corpus

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_the_command_line_page_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "write_cli_help.py"))
    assert (ROOT / "docs" / "cli.md").read_text("utf-8") == page["render"](), "run `make docs`"


def test_the_page_of_settings_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "write_settings.py"))
    assert (ROOT / "docs" / "settings.md").read_text("utf-8") == page["render"](), "run `make docs`"


@pytest.mark.parametrize("command", ["ask", "chat", "generate", "index build"])
def test_the_page_says_what_a_command_says(command: str) -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    shown = page.partition(f"## flashback {command}\n")[2].partition("\n## ")[0]
    said = run(*command.split(), "--help").out
    defaults = r"\[default:[^]]*\]"
    assert re.findall(defaults, " ".join(shown.split())) == re.findall(
        defaults, " ".join(said.split())
    )


def documented_commands() -> list[str]:
    """Every `flashback …` line of the README's and the help's examples."""
    texts = [README, *(command.help or "" for command in app.commands.values())]
    joined = (re.sub(r"\\\n\s*", "", text) for text in texts)
    lines = [line.strip() for text in joined for line in text.splitlines()]
    commands = [line.partition("| ")[2] if line.startswith("zcat") else line for line in lines]
    known = "|".join(name for name in app.commands if name != "bench")
    return [line for line in commands if re.match(rf"flashback ({known})", line)]


@pytest.mark.parametrize("line", documented_commands())
def test_documented_commands_are_accepted(line: str) -> None:
    words = shlex.split(re.split(r" {2,}[a-z#]| [<>] ", line)[0], comments=True)[1:]
    command: click.Command = app
    context = app.make_context("flashback", list(words))
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, found.make_context(name, rest, parent=context)


@pytest.mark.filterwarnings("ignore:.* passages looked at are longer")
def test_the_readmes_python_example_runs(
    tmp_path: Path,
    chat_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 1
    assert len(blocks[0].splitlines()) <= 20
    (tmp_path / "skarvik.txt").write_text("The lighthouse of Skarvik was built in 1874. " * 40)
    report = CorpusReport()
    index_corpus([str(tmp_path / "skarvik.txt")], tmp_path / "IDX", IndexSettings(), report)
    monkeypatch.chdir(tmp_path)
    hub = '"HuggingFaceTB/SmolLM2-135M-Instruct"'  # which is not on this machine
    assert hub in blocks[0]
    exec(compile(blocks[0].replace(hub, repr(str(chat_model))), "README.md", "exec"), {})
    assert "['skarvik.txt'] cached:" in capsys.readouterr().out


def test_the_table_of_modules_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "write_module_table.py"))
    rendered = page["render"]()
    assert page["PAGE"].read_text("utf-8") == rendered, "run `make docs`"
    for path in page["SOURCE"].rglob("*.py"):
        name = path.relative_to(page["SOURCE"]).as_posix()
        assert path.name.startswith("__") or f"`{name}`" in rendered, name


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^):]+)\)", document.read_text("utf-8")):
            file, _, heading = target.partition("#")
            linked = document.parent / file if file else document
            assert linked.exists(), f"{document.name}: {target}"
            assert not heading or heading in anchors(linked), f"{document.name}: {target}"


def test_every_result_that_is_kept_is_referred_to() -> None:
    results = ROOT / "docs" / "results"
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    linked = {
        (page.parent / target).resolve()
        for page in pages
        for target in re.findall(r"\]\(([^):#]+)", page.read_text("utf-8"))
    }
    assert {path.resolve() for path in results.rglob("*.*")} <= linked


def anchors(document: Path) -> set[str]:
    """The names by which headings of a Markdown file are linked."""
    titles = re.findall(r"^#+ (.*)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_files_named_in_the_documents_exist() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        if document.name == "lab-log.md":  # it names files as they were called then
            continue
        for name in re.findall(
            r"`([\w./-]+/[\w./-]+\.(?:py|sh|txt))`", document.read_text("utf-8")
        ):
            found = [ROOT / name, ROOT / "src" / "flashback" / name]
            assert any(path.exists() for path in found), f"{document.name}: {name}"
