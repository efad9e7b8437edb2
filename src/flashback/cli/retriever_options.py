"""--index and --retriever: where passages come from, as one value."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from flashback.retrieval.specs import RetrieverSpec

Source = Path | RetrieverSpec
"""An index folder, or a retriever; nothing has been opened yet."""

_INDEX = "Index folder that passages come from."
_RETRIEVER = (
    "Instead of an index: a URL (http://...), package.module:factory or a name, each with =TEXT "
    "behind it if it takes one (docs/retrieval.md)."
)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Both options, given as `index`: a `Source`, or None."""
    return _source_options(command, required=False)


def required_source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same, and one of the two must be given."""
    return _source_options(command, required=True)


def _source_options(command: Callable[..., Any], *, required: bool) -> Callable[..., Any]:
    @functools.wraps(command)
    def run(index: Path | None, retriever: RetrieverSpec | None, **values: Any) -> Any:
        if index is not None and retriever is not None:
            raise click.UsageError("--index and --retriever: expected one of them, found both")
        if required and index is None and retriever is None:
            raise click.UsageError("Missing option '--index' (or '--retriever').")
        return command(index=retriever or index, **values)

    retriever_option = click.option(
        "--retriever", callback=spec_given, metavar="SPEC", help=_RETRIEVER
    )
    return click.option("--index", type=Path, help=_INDEX)(retriever_option(run))


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
    return {"index": source}
