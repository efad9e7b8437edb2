"""--index, --retriever and what combines several: where passages come from, as one value."""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from flashback.cli.options import options_of, take
from flashback.retrieval.fusion import FusionSettings
from flashback.retrieval.rerank import RerankSettings
from flashback.retrieval.specs import CombinedSource, RetrieverSpec

Source = Path | RetrieverSpec | CombinedSource
"""An index folder, a retriever, or several; nothing has been opened yet."""

_INDEX = "Index folder that passages come from (repeatable: what several find is fused)."
_RETRIEVER = (
    "Instead of an index, or beside it: a URL (http://...), package.module:factory or a name, each "
    "with =TEXT behind it if it takes one (docs/retrieval.md)."
)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of them, given as `index`: a `Source`, or None."""
    return _source_options(command, required=False)


def required_source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same, and an index or a retriever must be given."""
    return _source_options(command, required=True)


def _source_options(command: Callable[..., Any], *, required: bool) -> Callable[..., Any]:
    @functools.wraps(command)
    def run(index: tuple[Path, ...], retriever: tuple[RetrieverSpec, ...], **values: Any) -> Any:
        source = combined((*index, *retriever), values)
        if required and source is None:
            raise click.UsageError("Missing option '--index' (or '--retriever').")
        return command(index=source, **values)

    given: Callable[..., Any] = run
    for option in (
        combining_options,
        click.option(
            "--retriever", multiple=True, callback=specs_given, metavar="SPEC", help=_RETRIEVER
        ),
        click.option("--index", type=Path, multiple=True, help=_INDEX),
    ):
        given = option(given)
    return given


def combining_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How several sources become one, and what ranks anew; `combined` takes their values."""
    return options_of(FusionSettings)(options_of(RerankSettings)(command))


def combined(parts: Sequence[Path | RetrieverSpec], values: dict[str, Any]) -> Source | None:
    """What is to be searched, taking the values of `combining_options`; None: nothing.

    Raises:
        SettingsError: the weights are not those of so many parts.
    """
    fusion, rerank = take(FusionSettings, values), take(RerankSettings, values)
    if not parts:
        return None
    fusion.weights(len(parts))
    if len(parts) == 1 and not rerank.reranker:
        return parts[0]
    return CombinedSource(tuple(parts), fusion, rerank)


def specs_given(
    context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> tuple[RetrieverSpec, ...]:
    """Several SPECs, see `spec_given`."""
    specs = (spec_given(context, parameter, one) for one in given)
    return tuple(spec for spec in specs if spec is not None)


def spec_given(_: click.Context, __: click.Parameter, given: str | None) -> RetrieverSpec | None:
    """A SPEC; modules are looked for in the working folder, too, behind what is installed."""
    if given is None:
        return None
    spec = RetrieverSpec(given)
    if spec.is_python and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return spec


def source_arguments(source: Source | None) -> dict[str, Any]:
    """A source as `flashback.load` takes it."""
    if isinstance(source, RetrieverSpec):
        return {"retriever": source.text}
    if not isinstance(source, CombinedSource):
        return {"index": source}
    folders = [part for part in source.parts if not isinstance(part, RetrieverSpec)]
    specs = [part.text for part in source.parts if isinstance(part, RetrieverSpec)]
    return {
        "index": folders or None,
        "retriever": specs or None,
        "fusion": source.fusion,
        "rerank": source.rerank,
    }
