"""The report of a plan, and of its check against measured sweeps."""

from collections.abc import Iterator
from dataclasses import asdict

from flashback.benchmark.devices import GIB, PRICE_NOTE
from flashback.benchmark.measured_sweep import WITHIN, CheckedArm, MeasuredSweep
from flashback.benchmark.plan import Plan, PlannedPattern
from flashback.benchmark.report import Report
from flashback.benchmark.roofline import Rates

_HEADINGS = (
    *("pattern", "ms/stride", "first token s", "MB/user", "users/copy", "tokens/s", "per user"),
    *("devices", "$/M tokens"),
)
_CHECK_HEADINGS = ("pattern", "ms/stride", "predicted / measured", "least", "most", "within 25 %")


def plan_report(plan: Plan) -> Report:
    """A line for each pattern.

    Raises:
        SettingsError: see `Plan.patterns`.
    """
    planned = plan.patterns()
    settings, model, device = plan.settings, plan.model, plan.device
    title = (
        f"{model.name}, {settings.dtype}, on {device.title}: {settings.users:,} users, "
        f"contexts of {settings.context:,}, s={settings.stride}, m={settings.passage_tokens}"
    )
    record = {
        "settings": asdict(settings),
        "model": asdict(model),
        "device": asdict(device),
        "price": settings.price or device.price,
        "rates": _rates(plan.rates),
        "rates_from": plan.source,
        "devices_per_copy": plan.devices_per_copy,
        "patterns": [asdict(one) for one in planned],
    }
    rows = tuple(_row(one) for one in planned)
    return Report(record, title, _HEADINGS, rows, tuple(_notes(plan, planned)))


def _row(one: PlannedPattern) -> tuple[str, ...]:
    return (
        one.pattern,
        f"{1000 * one.stride_seconds:.1f}",
        f"{one.first_token_seconds:.3f}",
        f"{one.user_bytes / 1e6:,.0f}",
        f"{one.users_per_copy:,}",
        f"{one.tokens_per_second:,.0f}",
        f"{one.user_tokens_per_second:.1f}",
        f"{one.devices:,}",
        f"{one.dollars_per_million:.2f}",
    )


def _notes(plan: Plan, planned: list[PlannedPattern]) -> Iterator[str]:
    settings, copy = plan.settings, plan.devices_per_copy
    price = f"{plan.device.price:g} $ per hour ({PRICE_NOTE})"
    if settings.price:
        price = f"{settings.price:g} $ per hour"
    held = (
        f"{plan.model.weight_bytes / GIB:.1f} GiB of weights on {copy} of {plan.device.gib:g} GiB"
    )
    yield f"{plan.source}; {held}, {price}"
    if copy > 1:
        yield "several devices share a copy as if nothing were sent between them"
    slow = [one.pattern for one in planned if one.user_tokens_per_second < settings.speed]
    if slow:
        yield f"slower than --speed {settings.speed:g}, whatever the number: {', '.join(slow)}"


def _rates(rates: Rates) -> dict[str, float | None]:
    """Plain data; None: the rate is infinite."""
    return {name: rate if rate < float("inf") else None for name, rate in asdict(rates).items()}


def check_report(sweep: MeasuredSweep, name: str, checked: list[CheckedArm], source: str) -> Report:
    """Predicted against measured seconds per stride, arm by arm.

    Args:
        name: of the sweep's file.
        source: where the rates are from.
    """
    title = f"{name}: {sweep.shape}, {sweep.dtype}, batch {sweep.batch}, {sweep.device_name}"
    rows = tuple(
        (
            one.arm,
            f"{1000 * one.seconds:.1f}",
            f"{one.ratio:.2f}",
            f"{one.least:.2f}",
            f"{one.most:.2f}",
            f"{one.within:.0%}",
        )
        for one in checked
    )
    off = [one.arm for one in checked if not one.holds]
    verdict = f"off by more than {WITHIN:.0%}: {', '.join(off)}" if off else "all within 25 %"
    arms = [asdict(one) | {"holds": one.holds} for one in checked]
    record = {"sweep": name, "rates_from": source, "arms": arms}
    return Report(record, title, _CHECK_HEADINGS, rows, (f"{source}; {verdict}",))
