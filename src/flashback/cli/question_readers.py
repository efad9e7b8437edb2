"""The reader that answers questions: in this process, or behind an engine that runs the model."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flashback.cli.engine_options import EngineOptions
from flashback.cli.reader_options import ReaderOptions
from flashback.errors import SettingsError
from flashback.readers.weight_settings import Weights

if TYPE_CHECKING:
    from flashback.questions.answers import OpenWriter
    from flashback.questions.run import Readers
    from flashback.readers.text_reader import TextReader
    from flashback.retrieval.protocol import Retriever
    from flashback.writing.generator import Generator


def readers_here(
    options: ReaderOptions, weights: Weights, adapters: Sequence[Path]
) -> "tuple[Readers, OpenWriter]":
    """The reader in this process, with one adapter after the other."""
    from flashback.evaluation.adapted_readers import AdaptedReaders
    from flashback.readers.inference import check_weights, for_inference

    check_weights(weights, options.device, options.dtype)
    finish = partial(for_inference, weights=weights)
    readers = AdaptedReaders(options.load_plain, finish)
    readers.check(adapters)
    return readers, _open_writer


def reader_elsewhere(
    options: ReaderOptions, engine: EngineOptions, weights: Weights, adapters: Sequence[Path]
) -> "tuple[Readers, OpenWriter]":
    """The reader of an engine that runs the model itself.

    Raises:
        SettingsError: an adapter was given.
    """
    from flashback.loading import load
    from flashback.questions.run import OneReader
    from flashback.writing.generator import Generator

    if adapters:
        raise SettingsError(
            f"--adapter: with --engine={engine.name!r} the model is as it is; leave it out"
        )
    loaded = load(
        options.model,
        weights=weights,
        **engine.arguments,
        **options.placed,
    )
    return OneReader(loaded.reader), lambda reader, found: Generator(reader, loaded.engine, found)


def _open_writer(reader: "TextReader", retriever: "Retriever") -> "Generator":
    from flashback.engines.local import LocalEngine
    from flashback.readers.reader import Reader
    from flashback.writing.generator import Generator

    assert isinstance(reader, Reader)
    return Generator(reader, LocalEngine(reader.model, reader.window), retriever)


def placement_record(reader: "TextReader") -> dict[str, str]:
    """Where a model runs, and how, as far as it is known here."""
    from flashback.readers.reader import Reader

    if not isinstance(reader, Reader):
        return {"device": reader.runs_on, "dtype": "unknown", "weights": "unknown"}
    placement = reader.placement
    return {
        "device": str(placement.device),
        "dtype": placement.dtype_name,
        "weights": str(placement.weights),
    }
