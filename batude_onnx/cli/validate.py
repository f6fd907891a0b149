"""`batude-onnx validate`: one model held against another."""

from __future__ import annotations

from pathlib import Path

import click

from batude_onnx.cli.options import (
    console_for,
    data_options,
    guarded,
    require_data,
    running_options,
    two_models,
)
from batude_onnx.errors import ParityError
from batude_onnx.records import Given, Wishes
from batude_onnx.settings import Source


@click.command()
@two_models
@data_options
@click.option("--equal", is_flag=True, help="Fail unless all outputs are equal within rounding.")
@running_options
@guarded
def validate(
    first: Path,
    second: Path,
    data: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    equal: bool,
    seed: int,
    provider: str,
    threads: int | None,
    inputs: dict[str, Given],
    dims: dict[str, int],
    as_json: bool,
) -> None:
    """Hold model SECOND against FIRST: size, outputs, accuracy, speed."""
    from batude_onnx.pipeline import validate as hold
    from batude_onnx.report import ConsoleWatch, comparison_table, difference_table, to_json

    require_data(data, mean=mean, std=std)
    source = None if data is None else Source(data, mean=mean, std=std)
    wishes, console = Wishes(inputs, dims), console_for(stderr=as_json)
    with ConsoleWatch(console) as watch:
        comparison = hold(first, second, source, provider=provider, threads=threads, seed=seed, inputs=wishes, watch=watch)
    if as_json:
        click.echo(to_json(comparison))
    else:
        console.print(comparison_table(comparison, ("first", "second")))
        console.print()
        console.print(difference_table(comparison))
        if comparison.divergence is not None:
            console.print(str(comparison.divergence), highlight=False, soft_wrap=True)
    wrong = [difference for difference in comparison.differences if not difference.within]
    if equal and wrong:
        worst = max(wrong, key=lambda difference: difference.max_absolute)
        where = "" if comparison.divergence is None else f"; {comparison.divergence}"
        raise ParityError(f"output {worst.output!r} of {second} is off by {worst.max_absolute:.3g} from {first}{where}")
