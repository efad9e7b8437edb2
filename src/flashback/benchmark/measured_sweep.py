"""A sweep that `flashback bench runtime` measured, read from its record or from docs/results."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashback.benchmark.arms import arm_named
from flashback.benchmark.flops import Shape
from flashback.benchmark.roofline import Rates, fit, work_of
from flashback.errors import SettingsError
from flashback.patterns.cost import Pass, StrideShape

_EXPECTED = "expected a record of `flashback bench runtime --json`, or a table made of one"


@dataclass(frozen=True)
class MeasuredStride:
    """A stride behind a full cache."""

    arm: str
    context: int
    boundary_seconds: float
    stride_seconds: float
    """Boundary and decoding."""


@dataclass(frozen=True)
class MeasuredSweep:
    """The strides of every arm of a sweep of random tokens, without the first ones."""

    shape: str
    """As `--shape` takes it."""
    device: str
    device_name: str
    dtype: str
    batch: int
    stride: int
    passage_tokens: int
    recompute_tokens: int
    """e."""
    strides: tuple[MeasuredStride, ...]

    @property
    def arms(self) -> list[str]:
        """In the order of the table."""
        return list(dict.fromkeys(one.arm for one in self.strides))

    def passes(self, one: MeasuredStride) -> list[Pass]:
        """The passes of a stride: the boundary's, then one for each decoded token."""
        arm = arm_named(one.arm)
        retrieves, isolated = arm.context_pattern.retrieves, arm.context_pattern.isolated
        shape = StrideShape(
            one.context,
            self.stride,
            self.passage_tokens if retrieves else 0,
            known=arm.cached,
            recomputed=self.recompute_tokens,
            history=1,
            sink=1,
            every_logit=arm.every_logit,
            batch=self.batch,
            # Recorded passes, which CUDA has, are of fixed shapes.
            joint=isolated and self.device == "cpu",
        )
        return list(arm.context_pattern.passes(shape))

    def rates(self, shape: Shape) -> Rates:
        """The rates that explain the sweep best, boundaries and decoding apart."""
        work, seconds = [], []
        for one in self.strides:
            passes = self.passes(one)
            decoded = self.stride - 1
            work += [work_of(shape, passes[:-decoded]), work_of(shape, passes[-decoded:])]
            seconds += [one.boundary_seconds, one.stride_seconds - one.boundary_seconds]
        return fit(work, seconds)

    def checked(self, shape: Shape, rates: Rates) -> "list[CheckedArm]":
        """Predicted against measured seconds per stride."""
        return [self._checked(arm, shape, rates) for arm in self.arms]

    def _checked(self, arm: str, shape: Shape, rates: Rates) -> "CheckedArm":
        own = [one for one in self.strides if one.arm == arm]
        predicted = [rates.seconds(shape, self.passes(one)) for one in own]
        measured = [one.stride_seconds for one in own]
        ratios = [one / other for one, other in zip(predicted, measured, strict=True)]
        return CheckedArm(
            arm,
            sum(measured) / len(own),
            sum(predicted) / sum(measured),
            min(ratios),
            max(ratios),
            sum(abs(ratio - 1) <= WITHIN for ratio in ratios) / len(own),
        )


WITHIN = 0.25
"""How far a prediction may be off."""


@dataclass(frozen=True)
class CheckedArm:
    """How well the strides of an arm were predicted."""

    arm: str
    seconds: float
    """Measured, per stride, in the mean."""
    ratio: float
    """Predicted by measured seconds of all strides."""
    least: float
    """Of single strides."""
    most: float
    within: float
    """The share of strides that are predicted within 25 %."""

    @property
    def holds(self) -> bool:
        """Whether the seconds per stride are predicted within 25 %."""
        return abs(self.ratio - 1) <= WITHIN


def read_sweep(path: Path, flag: str) -> MeasuredSweep:
    """Read a record or a table.

    Args:
        flag: the option that names the file, for messages.

    Raises:
        SettingsError: the file is missing, or no sweep of random tokens with three strides or more.
    """
    name = f"{flag}={str(path)!r}"
    try:
        text = path.read_text("utf-8")
        found = _of_record(json.loads(text)) if path.suffix == ".json" else _of_table(text)
    except OSError as error:
        raise SettingsError(f"{name}: {error.strerror}; {_EXPECTED}") from error
    except KeyError as error:
        raise SettingsError(f"{name}: without {error.args[0]!r}; {_EXPECTED}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise SettingsError(f"{name}: no sweep ({_line(error)}); {_EXPECTED}") from error
    if len(found.strides) < 3:
        raise SettingsError(f"{name}: {len(found.strides)} strides behind a full cache; expected 3")
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _of_record(record: dict[str, Any]) -> MeasuredSweep:
    rows = record["rows"]
    first = min(row["length"] for row in rows)
    strides = tuple(
        _stride(row["pattern"], row["length"], row["encode_seconds"], row["stride_seconds"])
        for row in rows
        if row["length"] > first
    )
    plain = {name: value for name, value in record.items() if isinstance(value, str | int)}
    return _sweep(record["settings"] | plain, strides)


def _of_table(text: str) -> MeasuredSweep:
    lines = text.splitlines()
    about: dict[str, str] = {}
    for line in lines:
        if line.startswith("# "):
            pairs = (part.partition(" ") for part in line[2:].split(", "))
            about |= {name: value for name, _, value in pairs if name not in about}
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    return _sweep(about, tuple(_strides(rows[1:], about["arms"].split("+"))))


def _strides(rows: list[dict[str, str]], arms: list[str]) -> Iterator[MeasuredStride]:
    for arm in arms:
        for row in rows:
            boundary, whole = (float(row[f"{arm} {kind} ms"]) for kind in ("boundary", "stride"))
            yield _stride(arm, int(row["context"]), boundary / 1000, whole / 1000)


def _stride(arm: str, context: int, boundary: float, whole: float) -> MeasuredStride:
    arm_named(arm)
    if not 0 < boundary < whole or context < 1:
        raise ValueError(f"a stride of {whole} s with a boundary of {boundary} s")
    return MeasuredStride(arm, context, boundary, whole)


def _sweep(about: dict[str, Any], strides: tuple[MeasuredStride, ...]) -> MeasuredSweep:
    if about["text"] != "random tokens":
        raise ValueError(f"text {about['text']}, whose passages may stay; not random tokens")
    return MeasuredSweep(
        about["shape"],
        about["device"],
        about.get("device_name", about["device"]),
        about["dtype"],
        int(about["batch"]),
        int(about["stride"]),
        int(about["passage_tokens"]),
        int(about.get("recompute_tokens", 1)),
        strides,
    )
