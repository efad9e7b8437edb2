"""Texts of which an index has the passages: all passages of a title, in their order, as one.

    python scripts/join_passages.py PASSAGES.jsonl[.gz] > TEXTS.jsonl

Each line of both has `id`, `title` and `text`.
"""

import gzip
import json
import sys
from pathlib import Path


def main() -> None:
    """Print the texts, in the order of their first passages."""
    if len(sys.argv) != 2:
        sys.exit("expected a file of passages: join_passages.py PASSAGES.jsonl[.gz]")
    passages = Path(sys.argv[1])
    read = gzip.open if passages.suffix == ".gz" else open
    found: dict[str, list[str]] = {}
    with read(passages, "rt", encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            found.setdefault(record["title"], []).append(record["text"])
    for title, parts in found.items():
        print(json.dumps({"id": title, "title": title, "text": "\n".join(parts)}))


if __name__ == "__main__":
    main()
