"""`flashback plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashback.benchmark.plan_settings import PlanSettings
from flashback.cli.bench_options import json_option, print_report
from flashback.cli.console import notes
from flashback.cli.options import options_of, take

if TYPE_CHECKING:
    from flashback.benchmark.report import Report


@click.command(short_help="Devices, memory and cost of serving, computed.")
@options_of(PlanSettings)
@click.option(
    "--calibrate",
    type=Path,
    metavar="FILE",
    help="Rates as this sweep of `flashback bench runtime` reached them: its --json, or its CSV "
    "(default: shares of the device's peaks).",
)
@click.option(
    "--check",
    type=Path,
    metavar="FILE",
    help="Compare with this sweep, stride by stride, instead of planning.",
)
@json_option
def plan(calibrate: Path | None, check: Path | None, as_json: bool, **values: Any) -> None:
    """Compute what serving takes: tokens per second, memory, devices, cost (docs/scaling.md).

    \b
    flashback plan --model llama-2-7b --gpu h100 --users 1000 --context 3000
    flashback plan --model ./MODEL --gpu l4 --pattern slot --pattern prepend --price 0.8
    flashback plan --gpu cpu --dtype float32 --model opt-125m --batch-size 1 --calibrate SWEEP.json

    Nothing is measured, and no weights are loaded: the passes of a stride are counted, and take as
    long as the device's rates say. ms/stride: of one text alone. First token: of a text of which
    nothing is cached. A copy: the devices that hold the model once; tokens/s are its, at full load.
    """
    settings = take(PlanSettings, values)
    with notes.status("counting"):
        report = _report(settings, calibrate, check)
    print_report(report, as_json=as_json)


def _report(settings: PlanSettings, calibrate: Path | None, check: Path | None) -> "Report":
    from flashback.benchmark.measured_sweep import read_sweep
    from flashback.benchmark.model_size import model_size
    from flashback.benchmark.plan import make_plan
    from flashback.benchmark.plan_report import check_report, plan_report

    calibration = None if calibrate is None else read_sweep(calibrate, "--calibrate")
    measured = None if check is None else read_sweep(check, "--check")
    if check is None or measured is None:
        return plan_report(make_plan(settings, calibration))
    made = make_plan(settings, calibration)
    shape = model_size(measured.shape, measured.dtype).shape
    return check_report(measured, check.name, measured.checked(shape, made.rates), made.source)
