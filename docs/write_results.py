"""Write FOLDER/NAME.csv from a record NAME.json, and the figure beside it in fewer colours.

A record is what `flashback bench … --json`, `flashback eval … --json` and `flashback reproduce`
write: every stride with every digit. docs/results keeps what the pages refer to.
"""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

Record = dict[str, Any]

_COLOURS = 64
_LEFT_OUT = {"rows", "points", "settings", "versions"}
"""Parts of a record that are no description of it."""


def write(record: Path, folder: Path) -> Path:
    """Write table and figure of a record into a folder; the table's path."""
    found = json.loads(record.read_text("utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.stem}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"# {line}\n" for line in describe(found))
        csv.writer(file, lineterminator="\n").writerows(table(found))
    if (figure := record.with_suffix(".png")).exists():
        image = Image.open(figure).convert("RGB").quantize(_COLOURS)
        image.save(folder / figure.name, optimize=True)
    return path


def describe(record: Record) -> Iterator[str]:
    """What was measured, where and how, in lines."""
    about = {name: value for name, value in record.items() if name not in _LEFT_OUT}
    plain = {name: value for name, value in about.items() if not isinstance(value, dict)}
    for part in (plain, record["settings"], record.get("versions")):
        if part:
            yield ", ".join(f"{name} {_text(value)}" for name, value in part.items())


def table(record: Record) -> Iterable[list[str]]:
    """The rows of a record, their names first."""
    if "points" in record:
        return _pareto(record["points"])
    rows = record["rows"]
    if "length" in rows[0]:
        return _runtime(rows, record["settings"]["arms"])
    return _perplexity(rows) if "perplexity" in rows[0] else _engine(rows)


def _runtime(rows: list[Record], arms: list[str]) -> Iterator[list[str]]:
    """A line for each context length: milliseconds of each arm's boundary pass and whole stride."""
    names = ("encode_seconds", "stride_seconds", "predicted_seconds")
    kinds = ("boundary", "stride", "predicted")
    yield ["context", *(f"{arm} {kind} ms" for arm in arms for kind in kinds)]
    found = {(row["length"], row["pattern"]): row for row in rows}
    for length in dict.fromkeys(row["length"] for row in rows):
        own = (found[length, arm] for arm in arms)
        cells = (_number(1000 * row[name]) for row in own for name in names)
        yield [str(length), *cells]


def _perplexity(rows: list[Record]) -> Iterator[list[str]]:
    """A line for each row of a table of perplexities."""
    yield ["row", "perplexity", "low", "high", "against first row", "low", "high", "bits per byte"]
    for row in rows:
        own = (row["perplexity"], row["low"], row["high"])
        ratio = (row["against_first_row"][name] for name in ("value", "low", "high"))
        yield [row["name"], *map(_number, [*own, *ratio, row["bits_per_byte"]])]


def _pareto(points: list[Record]) -> Iterator[list[str]]:
    """A line for each arm, stride and number of passages."""
    yield ["arm", "stride", "passages", "perplexity", "low", "high", "ms per token"]
    for point in points:
        own = (point["perplexity"][name] for name in ("value", "low", "high"))
        figures = map(_number, [*own, 1000 * point["seconds_per_token"]])
        yield [point["arm"], str(point["stride"]), str(point["passages"]), *figures]


def _engine(rows: list[Record]) -> Iterator[list[str]]:
    """A line for each engine and dtype."""
    yield ["arm", "tokens", "tokens per second", "spread", "share outside the model"]
    for row in rows:
        figures = map(_number, (row["tokens_per_second"], row["spread"], row["other_share"]))
        yield [row["arm"], str(row["tokens"]), *figures]


def _number(value: float) -> str:
    return f"{value:.4g}"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_text(own)}" for name, own in value.items()) + ")"
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: write_results.py RECORD.json... FOLDER")
    for name in sys.argv[1:-1]:
        print(write(Path(name), Path(sys.argv[-1])))
