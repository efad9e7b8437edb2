"""What the commands that score documents share: sweeps, arms, evaluation sets, tables."""

import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.audit_option import audit_record, shown_in
from flashback.cli.documents import Sources, read_and_retrieve
from flashback.cli.tables import print_table
from flashback.patterns.registry import PATTERNS
from flashback.scoring.control_kind import Control
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import QueryForm, RetrievalSettings

if TYPE_CHECKING:
    from flashback.evaluation.adapted_readers import AdaptedReaders
    from flashback.evaluation.arms import Arm
    from flashback.evaluation.evaluate import EvaluationSet
    from flashback.evaluation.perplexity import Table
    from flashback.readers.reader import Reader
    from flashback.readers.text_reader import TextReader

_SWEPT = {
    "s": "stride",
    "l": "query_tokens",
    "q": "query_form",
    "m": "passage_tokens",
    "k": "passages",
}


def combinations(settings: RetrievalSettings, sweep: Sequence[str]) -> Iterator[RetrievalSettings]:
    """The settings with every combination of the values of a sweep.

    Args:
        sweep: such as `s=4,8,16`.

    Raises:
        click.UsageError: an unknown name, or a value that it cannot have.
    """
    choices: dict[str, list[Any]] = {}
    for text in sweep:
        name, _, values = text.partition("=")
        if name not in _SWEPT or not values:
            raise click.UsageError(
                f"--sweep {text}: expected s=, l=, m= or k= and numbers, such as s=4,8,16, or q= "
                "and forms of queries"
            )
        if name in choices:
            raise click.UsageError(f"--sweep {text}: {name} is swept already; name it once")
        kind = QueryForm if name == "q" else int
        try:
            choices[name] = list(dict.fromkeys(kind(value) for value in values.split(",")))
        except ValueError:
            expected = ", ".join(QueryForm) if name == "q" else "whole numbers"
            raise click.UsageError(f"--sweep {text}: expected {expected}") from None
    for chosen in itertools.product(*choices.values()):
        changed: dict[str, Any] = {
            _SWEPT[name]: value for name, value in zip(choices, chosen, strict=True)
        }
        yield replace(settings, **changed)


def swept_name(settings: RetrievalSettings, sweep: Sequence[str]) -> str:
    """Such as `s=4 k=1`; empty without a sweep."""
    names = [text.partition("=")[0] for text in sweep]
    return " ".join(f"{name}={getattr(settings, _SWEPT[name])}" for name in names)


def chosen_patterns(reader: "TextReader", wanted: Sequence[str]) -> list[str]:
    """The wanted patterns, or all that the reader supports.

    Raises:
        SettingsError: the reader does not support a wanted pattern.
    """
    for pattern in wanted:
        reader.check_pattern(pattern)
    return list(wanted) or [name for name, pattern in PATTERNS.items() if reader.can_have(pattern)]


def untrained_rows(
    reader: "Reader", patterns: Sequence[str], *, shortened: bool = False, block: int = 1
) -> "list[Arm]":
    """The rows without an adapter.

    Args:
        shortened: whether to add the paper's baseline with shorter contexts.
        block: with more than 1, a slot made of such blocks is added.
    """
    from flashback.evaluation.arms import Arm, untrained_arms, usual_frames

    arms = untrained_arms(patterns, usual_frames(reader))
    if block > 1:
        isolated = (arm for arm in tuple(arms) if PATTERNS[arm.pattern].isolated)
        arms += [replace(arm, block=block) for arm in isolated]
    return [*arms, Arm("none", shortened=True)] if shortened else arms


def with_controls(arms: "Sequence[Arm]", controls: Sequence[Control]) -> "list[Arm]":
    """The rows, behind each with passages the same with those of the controls."""
    return [
        replace(arm, control=control)
        for arm in arms
        for control in (None, *(controls if PATTERNS[arm.pattern].retrieves else ()))
    ]


def check_arms(
    arms: "Sequence[Arm]",
    readers: "AdaptedReaders",
    windows: WindowSettings,
    settings: Sequence[RetrievalSettings],
) -> None:
    """Refuse adapters of other readers and windows that do not fit, before documents are read.

    Raises:
        AdapterError: an adapter belongs to another model.
        SettingsError: windows with passages need more positions than the reader has.
    """
    from flashback.scoring.windows import check_positions

    readers.check(arm.adapter for arm in arms if arm.adapter is not None)
    reader = readers.get()
    frame = max(arm.frame_tokens(reader) for arm in arms)
    for one in settings:
        check_positions(reader, windows, one, frame)


def evaluation_sets(
    reader: "Reader",
    sources: Sources,
    settings: Sequence[RetrievalSettings],
    windows: WindowSettings,
    described: dict[str, Any],
    *,
    audited: bool = False,
    controls: Collection[Control] = (),
) -> "list[EvaluationSet]":
    """An evaluation set for each of the settings, with progress bars.

    Args:
        described: recorded in every table besides the settings.
        audited: whether what is shown is compared with the documents.
        controls: passages wanted besides those that are found.
    """
    from flashback.evaluation.evaluate import EvaluationSet

    retrieved = read_and_retrieve(sources, reader, settings, windows, controls)
    audited = audited and sources.retriever is not None
    return [
        EvaluationSet(
            tuple(own.examples(reader, one)),
            own.found,
            windows,
            _described(reader, one, windows, described),
            {
                "failed_lookups": sources.failures,
                "audit": audit_record(shown_in(own)) if audited else None,
            },
            {control: tuple(own.examples(reader, one, control)) for control in own.controls},
        )
        for one, own in zip(settings, retrieved, strict=True)
    ]


def _described(
    reader: "Reader",
    retrieval: RetrievalSettings,
    windows: WindowSettings,
    more: dict[str, Any],
) -> dict[str, Any]:
    from flashback.version import versions

    return {
        "model": reader.name,
        "device": str(reader.placement.device),
        "dtype": reader.placement.dtype_name,
        "weights": str(reader.placement.weights),
        **more,
        "stride": retrieval.stride,
        "query_tokens": retrieval.query_tokens,
        "query_form": str(retrieval.query_form),
        "passage_tokens": retrieval.passage_tokens,
        "passages": retrieval.passages,
        "lookahead": retrieval.lookahead,
        "min_score": retrieval.min_score,
        "min_relative_score": retrieval.min_relative_score,
        "forbid_titles": list(retrieval.forbid_titles),
        "forbid_documents": list(retrieval.forbid_documents),
        "window_tokens": windows.window_tokens,
        "first_boundary": windows.first_boundary,
        "protocol": str(windows.protocol),
        "max_windows": windows.max_windows,
        "window_seed": windows.seed,
        "versions": versions(),
    }


def title_of(model: str, table: "Table") -> str:
    """The title of a figure."""
    return f"{model}, {int(table.texts.tokens.sum()):,} targets"


def print_tables(
    tables: "Sequence[Table]", names: Sequence[str], model: str, *, as_json: bool
) -> None:
    """Print tables, a name above each, or as JSON."""
    records = [table.record() for table in tables]
    if as_json:
        click.echo(json.dumps({"tables": records} if names[0] else records[0], indent=2))
        return
    for name, record in zip(names, records, strict=True):
        print_table(record, f"{model} {name}".strip())
