"""`batude-onnx bench`: one model run against another."""

from __future__ import annotations

from pathlib import Path

import click

from batude_onnx.cli.options import (
    console_for,
    guarded,
    running_options,
    two_models,
)
from batude_onnx.records import Given, Wishes


@click.command()
@two_models
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Samples at a time, for the throughput.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True, help="Of each timing.")
@running_options
@guarded
def bench(
    first: Path,
    second: Path,
    batch: int,
    seconds: float,
    seed: int,
    provider: str,
    threads: int | None,
    inputs: dict[str, Given],
    dims: dict[str, int],
    as_json: bool,
) -> None:
    """Run model SECOND against FIRST: latency, throughput, memory, and where the time goes, layer by layer."""
    from batude_onnx.pipeline import bench as run
    from batude_onnx.report import ConsoleWatch, benchmark_table, time_table, to_json

    console = console_for(stderr=as_json)
    with ConsoleWatch(console) as watch:
        found = run(
            first, second, batch=batch, seconds=seconds, provider=provider, threads=threads, seed=seed,
            inputs=Wishes(inputs, dims), watch=watch,
        )  # fmt: skip
    if as_json:
        click.echo(to_json(found))
        return
    console.print(benchmark_table(found))
    console.print()
    console.print(time_table(found))
