"""Texts of which an index has the passages: all passages of a title, in their order, as one.

    python scripts/join_passages.py PASSAGES.jsonl[.gz] TEXTS.jsonl

Each line of both has `id`, `title` and `text`.
"""

import argparse
import gzip
import json
from pathlib import Path


def main() -> None:
    """Read the command line and join."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("passages", type=Path)
    parser.add_argument("texts", type=Path)
    asked = parser.parse_args()
    join(asked.passages, asked.texts)


def join(passages: Path, texts: Path) -> None:
    """Write the texts, in the order of their first passages."""
    read = gzip.open if passages.suffix == ".gz" else open
    found: dict[str, list[str]] = {}
    with read(passages, "rt", encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            found.setdefault(record["title"], []).append(record["text"])
    with texts.open("w", encoding="utf-8") as file:
        for title, parts in found.items():
            file.write(json.dumps({"id": title, "title": title, "text": "\n".join(parts)}) + "\n")


if __name__ == "__main__":
    main()
