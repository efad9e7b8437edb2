"""Write FOLDER/runtime.md from the records FOLDER/runtime-*.json of `flashback bench runtime`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]

_HEADINGS = (
    "pattern",
    "seconds",
    "tokens/s",
    "boundary passes",
    "spread",
    "growth",
    "share of the bound",
    "in decoding",
    "predicted / measured",
)
_SAMPLED = "-sampled"
_PASSAGES = {"kept": "cache hits", "encoded": "prefilled"}
"""The counts of a record's `passage_cache`, in words."""


def render(records: dict[str, Record]) -> str:
    """The page: a section for each record, by name; then how whole and sampled sweeps agree."""
    sections = [f"## {name}\n\n{_section(record)}" for name, record in records.items()]
    agreements = [
        _agreement(name, record, records[name + _SAMPLED])
        for name, record in records.items()
        if name + _SAMPLED in records
    ]
    return "\n".join(["# Run time\n", *sections, *agreements])


def _section(record: Record) -> str:
    lines = [_title(record), "", _row(_HEADINGS), "|---" + "|--:" * (len(_HEADINGS) - 1) + "|"]
    lines += [_row(_cells(record, arm)) for arm in record["settings"]["arms"]]
    lines += ["", *_notes(record), ""]
    return "\n".join(lines)


def _title(record: Record) -> str:
    settings, growth = record["settings"], record["boundary_growth"]
    way = "strides sampled" if settings["sampled"] else "the whole sweep"
    return (
        f"{record['shape']}, {record['dtype']}, batch {record['batch']}, {record['text']}; "
        f"contexts {settings['lengths'].partition(':')[0]} to {growth['to']}, "
        f"s={settings['stride']}, m={settings['passage_tokens']}; "
        f"{way}, {settings['repeats']} times; "
        f"{record['device_name']} ({record['device']}), {record['threads']} CPU threads; "
        + ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        + "."
    )


def _cells(record: Record, arm: str) -> Iterator[str]:
    seconds = record["seconds"][arm]
    yield arm
    yield f"{seconds:.2f}"
    yield f"{record['tokens'] * record['batch'] / seconds:.1f}"
    yield f"{record['encode_seconds'][arm] / seconds:.0%}"
    yield f"{record['spread'][arm]:.0%}" if record["settings"]["repeats"] > 1 else ""
    yield f"{record['boundary_growth'][arm]:.2f} x"
    yield f"{record['bound_share'][arm]:.0%}"
    yield f"{record['decode_bound_share'][arm]:.0%}"
    yield f"{record['predicted_share'][arm]:.2f}"


def _notes(record: Record) -> Iterator[str]:
    """Ratios, ceilings, where append's overhead goes, and what retrieval did."""
    for name, ratio in record["ratios"].items():
        low, high = record["ratio_ranges"][name]
        yield f"- {name} **{ratio:.2f}**" + (f" ({low:.2f} to {high:.2f})" if high > low else "")
    if {"append", "none"} <= record["seconds"].keys():
        yield _overhead(record)
    for title, rates in (("Ceilings", "ceilings"), ("Calibrated", "calibrated")):
        moved, computed = record[rates].values()
        yield f"- {title}: {moved / 1e9:,.1f} GB/s, {computed / 1e9:,.0f} GFLOP/s"
    if found := record.get("retrieval"):
        yield (
            f"- Retrieval, not counted: {1000 * found['p50_seconds']:.2f} ms a stride, p95 "
            f"{1000 * found['p95_seconds']:.2f} ms; {found['unchanged_share']:.0%} of passages "
            f"unchanged"
        )
    for arm, count in record.get("passage_cache", {}).items():
        shown = (f"{number} {_PASSAGES.get(kind, kind)}" for kind, number in count.items())
        yield f"- {arm}: {', '.join(shown)}"


def _overhead(record: Record) -> str:
    seconds, encode = record["seconds"], record["encode_seconds"]
    more = seconds["append"] - seconds["none"]
    boundary = encode["append"] - encode["none"]
    return (
        f"- append takes {more:.2f} s more than none: {boundary:.2f} s in boundary passes, "
        f"{more - boundary:.2f} s in decoding behind a passage"
    )


def _agreement(name: str, whole: Record, sampled: Record) -> str:
    shares = ", ".join(
        f"{arm} {sampled['seconds'][arm] / seconds:.3f}"
        for arm, seconds in whole["seconds"].items()
        if arm in sampled["seconds"]
    )
    return f"{name}: seconds sampled / the whole sweep: {shares}.\n"


def _row(cells: "Iterator[str] | tuple[str, ...]") -> str:
    return f"| {' | '.join(cells)} |"


def write(folder: Path) -> Path:
    """Write the page; its path."""
    records = {
        path.stem.removeprefix("runtime-"): json.loads(path.read_text("utf-8"))
        for path in sorted(folder.glob("runtime-*.json"))
    }
    if not records:
        raise SystemExit(f"{folder}: no runtime-*.json; write some with scripts/cpu_benchmark.sh")
    page = folder / "runtime.md"
    page.write_text(render(records), "utf-8")
    return page


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: write_runtime_tables.py FOLDER")
    print(write(Path(sys.argv[1])))
