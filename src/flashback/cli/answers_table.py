"""The table of `flashback eval qa` for people."""

import json
from typing import Any

from flashback.cli.tables import print_columns, print_passages, results_console

_PLACES = {"nats_per_token": 2, "prefilled": 0, "prompt_tokens": 0}
"""Digits behind the point; of all others one."""


def print_answers(record: dict[str, Any]) -> None:
    """Print a table's record (`flashback.questions.table.AnswerTable.record`), and its frames."""
    settings, rows = record["settings"], record["rows"]
    print_columns(_columns(rows), f"{settings['model']}, {settings['form']}")
    console = results_console()
    console.print(_summary(record))
    print_passages(record)
    for row in rows:
        if row["frame"] is not None:
            frame = row["frame"]
            echo = f", echo of {frame['echo_tokens']} tokens" if frame["echo_tokens"] else ""
            shown = f"{json.dumps(frame['before'])} passage {json.dumps(frame['after'])}{echo}"
            console.print(f"Frame of {row['name']}: {shown}")


def _summary(record: dict[str, Any]) -> str:
    settings = record["settings"]
    left_out = settings["file"]["unanswerable"]
    by = "conversations" if record["conversations"] else "passages"
    return (
        f"{record['questions']:,} questions on {record['groups']:,} {by}"
        f"{f', {left_out:,} unanswerable ones left out' if left_out else ''}; 95 % intervals by "
        f"resampling the {by} with their questions; differences are paired. An answer stands "
        f"in what is shown of the passages for {record['answer_shown']:.1f} % of the questions"
        f"{'' if settings['index'] else ' (their own passages)'}; nothing was found for "
        f"{record['without_passage']:,}.{_sources(record)}{_support(record['rows'])}"
    )


def _sources(record: dict[str, Any]) -> str:
    known = record["sources"]["questions"]
    found = record["sources"]["found"]
    return f" What answers was found for {found:,} of {known:,}." if known else ""


def _support(rows: list[dict[str, Any]]) -> str:
    """Of each row the right answers that had in view what they rest on, and the wrong ones."""
    if not rows[0]["support"]["answers"]:
        return ""
    found = []
    for row in rows:
        one = row["support"]
        wrong = one["answers"] - one["right"]
        found.append(
            f"{row['name']} {one['right_in_view']:,} of {one['right']:,} right and "
            f"{one['in_view'] - one['right_in_view']:,} of {wrong:,} wrong"
        )
    return f" Answers with what they rest on in view: {', '.join(found)}."


def _columns(rows: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Headings and cells, the most important first."""

    def cells(name: str, *path: str) -> list[str]:
        found = []
        for row in rows:
            one = row[path[0]][name] if path else row[name]
            places = _PLACES.get(name, 1)
            found.append(_interval(one, places, signed=bool(path)))
        return found

    against = "against_plain_rag"
    costs = []
    if "prefilled" in rows[0]:
        costs = [
            ("prefilled\ntokens", cells("prefilled")),
            ("prompt\ntokens", cells("prompt_tokens")),
        ]
    scored, own = [], []
    if "nats_per_token" in rows[0]:  # not by a reader whose model is elsewhere
        scored = [("-log p\nper token", cells("nats_per_token"))]
        own = [("-log p against\nplain RAG", cells("nats_per_token", against))]
    return [
        ("", [row["name"] for row in rows]),
        ("F1 (95 %)", cells("f1")),
        ("exact\nmatch", cells("exact_match")),
        ("sub-\nstring", cells("substring")),
        *costs,
        *scored,
        ("F1 against\nplain RAG", cells("f1", against)),
        *own,
        ("substring against\nplain RAG", cells("substring", against)),
    ]


def _interval(one: dict[str, float], places: int, *, signed: bool) -> str:
    sign = "+" if signed else ""
    value, low, high = (f"{one[name]:{sign}.{places}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})" if signed else f"{value} ({low}-{high})"
