"""SciFact's data (a zip of CSV files, as the Hugging Face hub has it) in BEIR's format.

    python scripts/scifact_to_beir.py scifact.zip FOLDER

FOLDER gets corpus.jsonl (5,183 abstracts), queries.jsonl (claims) and qrels/test.tsv: the claims of
the development set with the documents that they cite, which is what BEIR calls its test set.
"""

import argparse
import ast
import csv
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

_TEXT = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
"""A text as Python writes it; an abstract is a list of some without commas."""


def main() -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zip", type=Path)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    convert(asked.zip, asked.folder)


def convert(data: Path, folder: Path) -> None:
    """Write BEIR's three files."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(data) as files:
        documents = [
            {"_id": row["doc_id"], "title": row["title"], "text": abstract_of(row["abstract"])}
            for row in _rows(files, "corpus_train.csv")
        ]
        claims = {row["id"]: row for row in _rows(files, "claims_validation.csv")}
    _write_lines(folder / "corpus.jsonl", documents)
    queries = [{"_id": name, "text": row["claim"]} for name, row in claims.items()]
    _write_lines(folder / "queries.jsonl", queries)
    judged = [
        f"{name}\t{document}\t1\n"
        for name, row in claims.items()
        for document in re.findall(r"\d+", row["cited_doc_ids"])
    ]
    table = "".join(["query-id\tcorpus-id\tscore\n", *judged])
    (folder / "qrels" / "test.tsv").write_text(table, "utf-8")


def abstract_of(cell: str) -> str:
    """The sentences of an abstract, one behind another."""
    return " ".join(str(ast.literal_eval(text)).strip() for text in _TEXT.findall(cell))


def _rows(files: zipfile.ZipFile, name: str) -> Iterator[dict[str, str]]:
    with files.open(name) as file:
        yield from csv.DictReader(io.TextIOWrapper(file, "utf-8", newline=""))


def _write_lines(file: Path, records: list[dict[str, str]]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    file.write_text("".join(lines), "utf-8")


if __name__ == "__main__":
    main()
