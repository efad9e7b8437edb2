"""The tables of `flashback eval swap` for people."""

from typing import Any

from flashback.cli.tables import print_columns, results_console


def print_swaps(record: dict[str, Any]) -> None:
    """Print tables (`flashback.questions.swap_table.SwapTable.record`)."""
    settings = record["settings"]
    for table in record["tables"]:
        title = (
            f"{table['exchange']}, {table['distance']} tokens, {table['cases']} cases "
            f"({table['kind']})"
        )
        print_columns(_columns(table["rows"]), title)
    results_console().print(
        f"{settings['model']}, {settings['form']}, asked {settings['asked']}; 95 % intervals by "
        "resampling cases; differences are paired. -log p is that of the new passage's answer. "
        "The old one's wins where it is more probable, and is written where it stands in the "
        "answer and not behind the new one. An unrelated passage answers nothing: there the "
        "answer of the passage that was never in view takes its place."
    )


def _columns(rows: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Headings and cells, the most important first."""

    def plain(name: str, places: int) -> list[str]:
        return [_interval(row[name], places) for row in rows]

    def against(name: str, places: int) -> list[str]:
        return [_interval(row["against_prepend"][name], places, "+") for row in rows]

    return [
        ("", [row["name"] for row in rows]),
        ("-log p\nper token (95 %)", plain("nats_per_token", 2)),
        ("old one\nwins, %", plain("old_wins", 1)),
        ("substring, %", plain("substring", 1)),
        ("old one\nwritten, %", plain("old_written", 1)),
        ("-log p against\nprepend", against("nats_per_token", 2)),
        ("old one wins\nagainst prepend", against("old_wins", 1)),
        ("exact\nmatch, %", plain("exact_match", 1)),
        ("-log p of\nthe old one", plain("old_nats_per_token", 2)),
        ("stale\ntokens", [f"{row['stale_tokens']['value']:.0f}" for row in rows]),
    ]


def _interval(one: dict[str, float], places: int, sign: str = "") -> str:
    value, low, high = (f"{one[name]:{sign}.{places}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})" if sign else f"{value} ({low}-{high})"
