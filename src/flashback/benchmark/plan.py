"""How many devices serve how many users, pattern by pattern, and what a million tokens cost.

Symbols: B rows of a pass, s stride, U users of a copy of the model, G devices that hold one.

A copy writes B*s tokens in the seconds of a stride of B rows. It serves as many users as its memory
has room for, and as get the wanted speed of what it writes. Everything is counted at full load.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from flashback.benchmark.devices import (
    GIB,
    Device,
    device_named,
    parse_efficiency,
)
from flashback.benchmark.measured_sweep import MeasuredSweep
from flashback.benchmark.model_size import ModelSize, model_size
from flashback.benchmark.plan_settings import PlanSettings
from flashback.benchmark.roofline import Rates
from flashback.errors import SettingsError
from flashback.patterns.cost import Pass, StrideShape
from flashback.patterns.pattern import ContextPattern
from flashback.patterns.registry import PATTERNS

_HOUR = 3600


@dataclass(frozen=True)
class PlannedPattern:
    """What one pattern takes."""

    pattern: str
    stride_seconds: float
    """Of one row alone."""
    first_token_seconds: float
    """Of a text of which nothing is cached, alone."""
    user_bytes: int
    """Keys and values of a text with its passages."""
    users_per_copy: int
    rows: int
    """B, at full load."""
    tokens_per_second: float
    """Of a copy at full load."""
    user_tokens_per_second: float
    """Of each of its users."""
    devices: int
    """For all users."""
    dollars_per_million: float
    """Tokens written, at full load."""


@dataclass(frozen=True)
class Plan:
    """A model on a device, ready to be planned."""

    settings: PlanSettings
    model: ModelSize
    device: Device
    rates: Rates
    """Of one device."""
    source: str
    """Where the rates are from, for people."""

    @cached_property
    def devices_per_copy(self) -> int:
        """G: the fewest, by doubling, whose memory holds the weights and one text.

        Raises:
            SettingsError: not even 64.
        """
        for count in (1, 2, 4, 8, 16, 32, 64):
            if self._room(count) >= self._user_bytes(self.settings.context):
                return count
        raise SettingsError(
            f"--gpu={self.device.name!r}: {self.model.weight_bytes / GIB:.1f} GiB of weights and a "
            f"text's cache do not fit into 64 of {self.device.gib:g} GiB"
        )

    def patterns(self) -> list[PlannedPattern]:
        """One after another.

        Raises:
            SettingsError: see `devices_per_copy`; or a text does not fit the model's window.
        """
        self._check_window()
        chosen = self.settings.patterns or tuple(PATTERNS)
        return [self._planned(PATTERNS[name]) for name in dict.fromkeys(chosen)]

    def _check_window(self) -> None:
        settings, window = self.settings, self.model.positions
        needed = settings.context + settings.passage_tokens + settings.stride
        if window and needed > window:
            raise SettingsError(
                f"--context={settings.context}: needs {needed} positions with passage and stride, "
                f"but {self.model.name} has {window}"
            )

    def _room(self, devices: int) -> float:
        """Bytes for caches on the devices of a copy."""
        usable = devices * self.device.gib * GIB * self.settings.memory_share
        return usable - self.model.weight_bytes

    def _user_bytes(self, context: int, passage: int | None = None) -> int:
        passage = self.settings.passage_tokens if passage is None else passage
        return (context + passage + self.settings.stride) * self.model.bytes_per_token

    def _planned(self, pattern: ContextPattern) -> PlannedPattern:
        settings, copy = self.settings, self.devices_per_copy
        own = self._user_bytes(settings.context, None if pattern.retrieves else 0)
        fitting = int(self._room(copy) // own)
        rows = self._rows(pattern, min(fitting, settings.batch_size))
        rate = rows * settings.stride / self.stride_seconds(pattern, rows)
        users = max(1, min(fitting, int(rate / settings.speed)))
        price = (settings.price or self.device.price) * copy
        return PlannedPattern(
            pattern.name,
            self.stride_seconds(pattern, 1),
            self.first_token_seconds(pattern),
            own,
            users,
            rows,
            rate,
            rate / users,
            copy * math.ceil(settings.users / users),
            price / (_HOUR * rate) * 1e6,
        )

    def _rows(self, pattern: ContextPattern, most: int) -> int:
        """B: the most rows of which each is written at the wanted speed; 1 if none is."""
        low, high = 1, max(1, most)
        while low < high:
            middle = (low + high + 1) // 2
            speed = self.settings.stride / self.stride_seconds(pattern, middle)
            low, high = (middle, high) if speed >= self.settings.speed else (low, middle - 1)
        return low

    def stride_seconds(self, pattern: ContextPattern, rows: int) -> float:
        """Seconds of a stride behind a full cache, on the devices of a copy."""
        share = self.settings.unchanged if pattern.retrieves else 0.0
        changed, same = (self._seconds(pattern, rows, known=known) for known in (False, True))
        return share * same + (1 - share) * changed

    def first_token_seconds(self, pattern: ContextPattern) -> float:
        """Seconds to the first token of a text of which nothing is cached."""
        passes = list(pattern.passes(replace(self._shape(pattern, 1, known=False), first=True)))
        return self._of(passes[: 1 - self.settings.stride])

    def _seconds(self, pattern: ContextPattern, rows: int, *, known: bool) -> float:
        return self._of(pattern.passes(self._shape(pattern, rows, known=known)))

    def _of(self, passes: Iterator[Pass] | list[Pass]) -> float:
        return self.rates.times(self.devices_per_copy).seconds(self.model.shape, passes)

    def _shape(self, pattern: ContextPattern, rows: int, *, known: bool) -> StrideShape:
        settings = self.settings
        passage = settings.passage_tokens if pattern.retrieves else 0
        return StrideShape(
            settings.context,
            settings.stride,
            passage,
            known=known,
            recomputed=1 if known else min(settings.recompute_tokens, settings.context),
            history=1,
            sink=1,
            batch=rows,
            joint=pattern.isolated and self.device.name == "cpu",
        )


def make_plan(settings: PlanSettings, calibration: MeasuredSweep | None = None) -> Plan:
    """A plan with rates of a measured sweep, or shares of the device's peaks.

    Raises:
        SettingsError: the sweep is of another dtype.
        ReaderError: see `model_size`.
    """
    device = device_named(settings.gpu)
    size = model_size(settings.model, settings.dtype)
    if calibration is None:
        own = parse_efficiency(settings.efficiency) if settings.efficiency else None
        efficiency = own or device.efficiencies[settings.dtype]
        shares = (efficiency.weights, efficiency.cache, efficiency.matrices)
        shown = ", ".join(f"{share:.0%}" for share in shares)
        source = f"{shown} of its peaks for weights, cache and matrices"
        return Plan(settings, size, device, Rates.of(device, settings.dtype, efficiency), source)
    if calibration.dtype != settings.dtype:
        raise SettingsError(
            f"--dtype={settings.dtype!r}: the sweep to calibrate with is of {calibration.dtype}"
        )
    rates = calibration.rates(model_size(calibration.shape, calibration.dtype).shape)
    source = f"rates of a sweep of {calibration.shape} on {calibration.device_name}"
    return Plan(settings, size, device, rates, source)
