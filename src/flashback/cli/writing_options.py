"""The options of the commands that write a text, as one checked request."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flashback.cli.console import notes
from flashback.cli.engine_options import EngineOptions, engine_options
from flashback.cli.frame_options import FrameOptions, frame_options
from flashback.cli.options import options_of, take
from flashback.cli.patterns import as_trained, check_echo
from flashback.cli.reader_options import (
    ReaderOptions,
    adapter_option,
    reader_options,
    weights_option,
)
from flashback.cli.retriever_options import Source, source_arguments, source_options
from flashback.errors import FlashBackWarning
from flashback.readers.weight_settings import Weights
from flashback.retrieval.guard import GuardSettings
from flashback.settings import AUTO, RetrievalSettings, SamplingSettings, Settings, StoppingSettings

if TYPE_CHECKING:
    from flashback.writing.generator import Generation, Generator


@dataclass(frozen=True)
class WritingRequest:
    """Settings, index and adapter of a command that writes."""

    settings: Settings
    index: Source | None
    adapter: str | None
    frame: FrameOptions
    guard: GuardSettings
    engine: EngineOptions

    def load(
        self, options: ReaderOptions, weights: Weights, *, always_index: bool = False
    ) -> "tuple[Generator, Settings]":
        """A generator, and the settings with the pattern that `auto` stands for.

        Args:
            always_index: open the index even if the pattern does not retrieve.

        Raises:
            FlashBackError: model, adapter or index are missing or unusable.
            SettingsError: the settings do not fit the reader.
        """
        from flashback.cli.quiet import begin_loading

        begin_loading(options.model)
        from flashback.loading import load

        retrieval = self.settings.retrieval
        writer = load(
            options.model,
            **(source_arguments(self.index) if retrieval.retrieves or always_index else {}),
            guard=self.guard,
            adapter=self.adapter,
            pattern=retrieval.pattern,
            weights=weights,
            passage_tokens=retrieval.passage_tokens,
            **self.engine.arguments,
            **options.placed,
        )
        settings = writer.settled(self.settings)
        check_echo(self.frame.echo_tokens or 0, settings.retrieval.pattern)
        if notes.is_terminal:
            adapted = " with an adapter" if writer.reader.adapter is not None else ""
            shown = f"{options.model}{adapted}, pattern {settings.retrieval.pattern}"
            notes.print(f"{shown}: {writer.reader.runs_on}", style="dim")
        return writer, settings


def writing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Index, reader, retrieval, frame, stopping, sampling, and what else `Settings` have."""
    return turn_options(options_of(Settings)(command))


def turn_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Index, reader, retrieval, frame, stopping and sampling."""
    for option in (
        options_of(SamplingSettings),
        options_of(StoppingSettings),
        frame_options,
        options_of(GuardSettings),
        options_of(RetrievalSettings),
        weights_option,
        engine_options,
        reader_options,
        adapter_option,
        source_options,
    ):
        command = option(command)
    return command


def writing_request(values: dict[str, Any]) -> WritingRequest:
    """Take the values of `writing_options`, checked as far as that goes without a model.

    Raises:
        SettingsError: a setting is out of range or contradicts another.
        AdapterError: the adapter's folder is missing or damaged.
    """
    names = ("index", "adapter", "frame", "engine")
    index, adapter, frame, engine = (values.pop(name) for name in names)
    settings = take(
        Settings,
        values,
        retrieval=take(RetrievalSettings, values, frame=frame.text),
        sampling=take(SamplingSettings, values),
        stopping=take(StoppingSettings, values),
    )
    if settings.retrieval.pattern != AUTO:
        check_echo(frame.echo_tokens or 0, settings.retrieval.pattern)
    settings = replace(settings, retrieval=as_trained(settings.retrieval, adapter))
    settings.retrieval.check_retriever(index)
    guard = take(GuardSettings, values)
    return WritingRequest(settings, index, adapter, frame, guard, engine)


def warn_if_empty(result: "Generation") -> None:
    """Say why there is no text."""
    if not result.text.strip():
        warnings.warn(
            f"the reader wrote nothing (ended by {result.finish_reason})",
            FlashBackWarning,
            stacklevel=2,
        )


def print_summary(result: "Generation") -> None:
    """Tokens, seconds and reuse of a finished text."""
    jumps = f", context jumped at {', '.join(map(str, result.jumps))}" if result.jumps else ""
    notes.print(
        f"{len(result.tokens)} tokens in {result.seconds:.2f} s "
        f"({result.tokens_per_second:.1f} tokens/s); prompt tokens prefilled {result.prefilled:,}, "
        f"reused {result.reused:,}; ended by {result.finish_reason}{jumps}",
        style="dim",
    )
