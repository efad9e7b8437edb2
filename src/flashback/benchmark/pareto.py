"""Each pattern's perplexity against its seconds per token.

Speed is that of writing: every arm continues the same prompts, in turns, with real retrieval. The
first stride, which prefills the prompt, does not count: the others show what a longer text costs.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flashback.benchmark.bench_settings import ParetoSettings
from flashback.benchmark.harness import by_arm, nothing, take_turns
from flashback.benchmark.machine import measured_on
from flashback.benchmark.report import Report
from flashback.engines.local import LocalEngine
from flashback.errors import TrainingError
from flashback.evaluation.arms import Arm
from flashback.evaluation.perplexity import Table
from flashback.evaluation.statistics import Interval
from flashback.patterns.prompt import Ids
from flashback.readers.adapter import put_on
from flashback.readers.inference import for_inference
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Retriever
from flashback.scoring.examples import Example
from flashback.settings import RetrievalSettings, Settings, StoppingSettings
from flashback.writing.generator import Generation, Generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Cell = tuple[Arm, RetrievalSettings]
"""An arm with the settings that it retrieves with."""


@dataclass(frozen=True)
class Point:
    """An arm with one stride and number of passages."""

    arm: str
    stride: int
    passages: int
    perplexity: Interval
    seconds_per_token: float
    """The median over prompts and repeats."""

    def record(self) -> dict[str, Any]:
        return asdict(self)


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other point beats in both, the fastest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (one.seconds_per_token, one.perplexity.value)):
        if not found or point.perplexity.value < found[-1].perplexity.value:
            found.append(point)
    return found


def prompts_of(examples: Sequence[Example], timing: ParetoSettings) -> list[Ids]:
    """Beginnings of the first windows that are long enough.

    Raises:
        TrainingError: none is.
    """
    tokens = timing.prompt_tokens
    whole = [example.window.ids for example in examples if len(example.window.ids) >= tokens]
    if not whole:
        raise TrainingError(
            f"no window has the {tokens} tokens of a prompt; give longer documents, or lower "
            "--prompt-tokens"
        )
    return [ids[:tokens] for ids in whole[: timing.prompts]]


@dataclass(frozen=True)
class Speed:
    """Readers and prompts, ready to be timed."""

    arms: Sequence[Arm]
    settings: Sequence[RetrievalSettings]
    """Every arm is timed with each."""
    load: Callable[[], Reader]
    """Loads the reader without an adapter."""
    retriever: Retriever | None
    prompts: Sequence[Ids]
    timing: ParetoSettings

    @property
    def cells(self) -> list[Cell]:
        """All combinations of arm and settings."""
        return [(arm, one) for one in self.settings for arm in self.arms]

    @property
    def steps(self) -> int:
        """Number of texts that `measure` keeps."""
        return len(self.cells) * self.timing.repeats * len(self.prompts)

    def measure(self, on_step: Callable[[], None] = nothing) -> dict[Cell, float]:
        """Median seconds per token of every cell, all of them in turns after a warm-up."""
        readers = {
            adapter: for_inference(self.load() if adapter is None else put_on(self.load(), adapter))
            for adapter in dict.fromkeys(arm.adapter for arm in self.arms)
        }
        engines = {
            adapter: LocalEngine(reader.model, reader.window) for adapter, reader in readers.items()
        }

        def write(cell: Cell, prompt: Ids) -> float:
            arm, retrieval = cell
            engine = engines[arm.adapter]
            engine.forget()
            writer = Generator(readers[arm.adapter], engine, self.retriever)
            return seconds_per_token(writer.generate(prompt, self._settings(arm, retrieval)))

        by_arm(take_turns(self.cells, self.prompts[-1:], write))  # the warm-up
        turns = [*self.prompts] * self.timing.repeats
        measured = by_arm(take_turns(self.cells, turns, write, on_step))
        return {cell: statistics.median(seconds) for cell, seconds in measured.items()}

    def _settings(self, arm: Arm, retrieval: RetrievalSettings) -> Settings:
        own = replace(retrieval, pattern=arm.pattern, frame=arm.frame_text)
        tokens = retrieval.stride + self.timing.new_tokens  # the first stride does not count
        return Settings(own, stopping=StoppingSettings(max_new_tokens=tokens, ignore_eos=True))


def seconds_per_token(written: Generation) -> float:
    """Of all strides but the first: retrieval, prefill, decoding."""
    later = written.strides[1:]
    seconds = sum(
        stride.retrieve_seconds + stride.usage.prefill_seconds + stride.usage.decode_seconds
        for stride in later
    )
    return seconds / sum(len(stride.tokens) for stride in later)


def points_of(speed: Speed, tables: Sequence[Table], seconds: Mapping[Cell, float]) -> list[Point]:
    """Perplexities (a table for each setting) and speeds put together, arm by arm."""
    return [
        Point(arm.name, one.stride, one.passages, table.rows[number].perplexity, seconds[arm, one])
        for number, arm in enumerate(speed.arms)
        for one, table in zip(speed.settings, tables, strict=True)
    ]


_SWEPT = ("stride", "passages")


def pareto_report(
    points: Sequence[Point], table: Table, timing: ParetoSettings, device: torch.device
) -> Report:
    """The points, on which targets, timed how, on which machine.

    Args:
        table: perplexities with one of the settings.
    """
    used = {"timing": asdict(timing), **table.record()["settings"]}
    record = {
        **measured_on(device),
        "settings": {name: value for name, value in used.items() if name not in _SWEPT},
        "tokens": int(table.texts.tokens.sum()),
        "points": [point.record() for point in points],
    }
    return Report(record, notes=tuple(in_markdown(points)))


def in_markdown(points: Sequence[Point]) -> Iterator[str]:
    """A table with a line for every arm and number of passages, and a column for every stride."""
    strides = sorted({point.stride for point in points})
    yield f"| perplexity, ms per token | k | {' | '.join(f's = {s}' for s in strides)} |"
    yield f"|---|--:|{'--:|' * len(strides)}"
    best = set(front(points))
    rows: dict[tuple[str, int], dict[int, Point]] = {}
    for point in points:
        rows.setdefault((point.arm, point.passages), {})[point.stride] = point
    for (arm, passages), own in rows.items():
        cells = [_cell(own[stride], own[stride] in best) for stride in strides]
        yield f"| {arm} | {passages} | {' | '.join(cells)} |"


def _cell(point: Point, best: bool) -> str:
    text = f"{point.perplexity.value:.2f}, {1000 * point.seconds_per_token:.1f}"
    return f"**{text}**" if best else text


def plot_pareto(points: Sequence[Point], title: str, path: Path) -> None:
    """One line for every arm and number of passages, over its strides; the front dotted in black.

    On the right the perplexities near the lowest, enlarged.

    Raises:
        SettingsError: see `flashback.evaluation.figures.check_plot`.
    """
    from flashback.evaluation.figures import check_plot, save_figure

    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    whole, near = figure.subplots(1, 2)
    for axes in (whole, near):
        _draw(axes, points)
    whole.set(yscale="log", title=title, ylabel="perplexity")
    lowest = min(point.perplexity.value for point in points)
    near.set(ylim=(0.99 * lowest, _NEAR * lowest), title=f"up to {_NEAR} times the lowest")
    figure.legend(
        *whole.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=4
    )
    save_figure(figure, path, dpi=120)


_NEAR = 1.2
"""Perplexities of so many times the lowest are enlarged."""


def _draw(axes: "Axes", points: Sequence[Point]) -> None:
    arms = list(dict.fromkeys(point.arm for point in points))
    counts = sorted({point.passages for point in points})
    for number, arm in enumerate(arms):
        for count, marker in zip(counts, "os^Dv*"[: len(counts)], strict=False):
            own = [point for point in points if (point.arm, point.passages) == (arm, count)]
            own.sort(key=lambda point: point.stride)
            axes.plot(
                [1000 * point.seconds_per_token for point in own],
                [point.perplexity.value for point in own],
                f"{marker}-",
                color=f"C{number}",
                markersize=4,
                linewidth=0.8,
                label=arm if count == counts[0] else None,
            )
    best = front(points)
    axes.plot(
        [1000 * point.seconds_per_token for point in best],
        [point.perplexity.value for point in best],
        "k:",
        label="no point is better in both",
    )
    shapes = ", ".join(f"{m} k={k}" for m, k in zip("○□△◇▽☆", counts, strict=False))
    axes.set(xscale="log", xlabel=f"milliseconds per token ({shapes})")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.spines[["top", "right"]].set_visible(False)
