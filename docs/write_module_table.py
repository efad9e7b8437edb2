"""Write the table of modules in docs/architecture.md from their docstrings."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "flashback"
PAGE = ROOT / "docs" / "architecture.md"
_HEAD = "| module | its first sentence |\n|---|---|\n"
_FOLDERS = (
    *(".", "patterns", "wire", "corpus", "retrieval", "engines", "readers", "writing", "scoring"),
    *("evaluation", "questions", "training", "server", "benchmark", "cli"),
)


def render() -> str:
    """The page with its table as it should be."""
    before, _, rest = PAGE.read_text("utf-8").partition(_HEAD)
    after = rest.partition("\n\n")[2]
    return "".join([before, _HEAD, *_rows(), "\n", after])


def _rows() -> Iterator[str]:
    for folder in _FOLDERS:
        files = SOURCE.glob("*.py") if folder == "." else (SOURCE / folder).rglob("*.py")
        for path in sorted(files):
            if not path.name.startswith("__"):
                name = path.relative_to(SOURCE).as_posix()
                yield f"| `{name}` | {_sentence(path)} |\n"


def _sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
