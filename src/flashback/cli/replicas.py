"""`flashback bench replicas`."""

from pathlib import Path
from typing import Any

import click

from flashback.benchmark.replicas_settings import ReplicasSettings
from flashback.cli.bench_options import json_option, print_report
from flashback.cli.documents import counting
from flashback.cli.options import options_of, take


@click.command()
@options_of(ReplicasSettings)
@click.option("--plot", type=Path, help="Write the figure to this file.")
@json_option
def replicas(plot: Path | None, as_json: bool, **values: Any) -> None:
    """Simulate conversations over replicas, routed in four ways.

    \b
    flashback bench replicas
    flashback bench replicas --replicas 16 --arrivals 4 --cache-tokens 60000 --plot replicas.png

    Nothing is measured: conversations are drawn from a seed, and rates are given ('flashback plan'
    computes them). The routes: affinity, as 'flashback serve --replica' sends requests; the same
    without a bound on what a replica has; the replica with the fewest requests; all in turns. One
    replica dies halfway.
    """
    settings = take(ReplicasSettings, values)
    from flashback.benchmark.replicas import routes, simulate
    from flashback.benchmark.replicas_report import plot_replicas, replicas_report
    from flashback.evaluation.figures import check_plot

    if plot is not None:
        check_plot(plot)
    with counting("simulating conversations") as start:
        outcomes = simulate(settings, start(settings.conversations * len(routes(settings))))
    print_report(replicas_report(settings, outcomes), as_json=as_json)
    if plot is not None:
        plot_replicas(settings, outcomes, plot)
