"""A table's record (`Table.record`) as text: for `table.md`, model cards and the terminal."""

from collections.abc import Iterator
from typing import Any


def rows_in_markdown(record: dict[str, Any]) -> Iterator[str]:
    """The lines of a Markdown table with a row for every arm."""
    yield "| | perplexity | 95 % interval | against the first row | per word | bits per byte |"
    yield "|---|--:|--:|--:|--:|--:|"
    for row in record["rows"]:
        ratio = row["against_first_row"]
        cells = (
            row["name"].replace("|", r"\|"),
            figure(row["perplexity"]),
            f"{figure(row['low'])} to {figure(row['high'])}",
            f"{ratio_figure(ratio['value'])} ({ratio_figure(ratio['low'])} to "
            f"{ratio_figure(ratio['high'])})",
            figure(row["word_perplexity"]),
            ratio_figure(row["bits_per_byte"]),
        )
        yield f"| {' | '.join(cells)} |"


def in_markdown(record: dict[str, Any], title: str) -> str:
    """A page with a table, what it was measured on, and how."""
    lines = [
        f"# {title}",
        "",
        f"Perplexity per token. {summary_of(record)}",
        "",
        *rows_in_markdown(record),
        "",
        *(f"{line}\n" for line in passages_of(record)),
        *(
            f"- {name.replace('_', ' ')}: {_shown(value)}"
            for name, value in record["settings"].items()
        ),
    ]
    return "\n".join(lines) + "\n"


def summary_of(record: dict[str, Any]) -> str:
    """The number of targets, the kind of intervals, and what passages share with documents."""
    documents = record["documents"]
    intervals = (
        "95 % intervals by resampling the documents; ratios are paired"
        if documents > 1
        else "one document gives no interval"
    )
    text = f"{record['tokens']:,} targets of {documents:,} documents; {intervals}."
    if all(row["pattern"] == "none" for row in record["rows"]):
        return text
    return f"{text} {_closeness(record['contamination'])}"


def passages_of(record: dict[str, Any]) -> Iterator[str]:
    """Lines on what was shown: failed lookups, if there are any, and the audit, if there is one."""
    if failed := record.get("failed_lookups"):
        yield f"{failed:,} lookups failed; they have no passage."
    if audit := record.get("audit"):
        verdicts = ", ".join(f"{name} {count:,}" for name, count in audit["verdicts"].items())
        found = audit["found"][:1]
        worst = "".join(f"; the closest: {one['title'] or one['document_id']}" for one in found)
        yield (
            f"Audit of {audit['documents']:,} shown documents, each against what it was shown "
            f"for: {verdicts}{worst}."
        )


def _closeness(counts: dict[str, int]) -> str:
    def share(name: str) -> str:
        return f"{100 * counts[name] / counts['cuts']:.1f} %"

    return (
        f"First passages: {share('empty')} none, {share('from_document')} of the document itself, "
        f"{share('overlapping')} with 8 words in a row in common with it; "
        f"{counts['copies_left_out']:,} copies of it left out."
    )


def figure(value: float | None, places: int = 2) -> str:
    """A number with at most four significant digits and at most `places` decimal places."""
    if value is None:
        return "-"
    if value >= 1e5:
        return f"{value:.1e}"
    return f"{value:.{max(0, min(places, 4 - len(str(int(value)))))}f}"


def ratio_figure(value: float | None) -> str:
    """A number around 1."""
    return figure(value, 3)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
