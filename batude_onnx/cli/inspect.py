"""`batude-onnx inspect`: every layer of a model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from batude_onnx.cli.options import (
    console_for,
    guarded,
    input_options,
    json_option,
    model_option,
)
from batude_onnx.records import Given, Wishes


@click.command()
@model_option
@input_options
@json_option
@guarded
def inspect(model: Path, inputs: dict[str, Given], dims: dict[str, int], as_json: bool) -> None:
    """Show every layer of MODEL, what it costs, and whether it can be compressed."""
    from batude_onnx.pipeline import inspect as look
    from batude_onnx.report import layer_table, number, to_json

    seen = look(model, Wishes(inputs, dims))
    if as_json:
        rows = [asdict(site) | {"params": site.params, "macs": site.macs} for site in seen.sites]
        click.echo(to_json({"cost": asdict(seen.cost), "inputs": seen.feeding.shapes(), "layers": rows}))
        return
    console = console_for()
    console.print(layer_table(seen.sites, seen.cost))
    within = sum(site.params for site in seen.compressible)
    share = 100 * within / seen.cost.params if seen.cost.params else 0.0
    macs = f"{number(seen.cost.macs)} MACs a sample" if seen.cost.macs else "MACs unknown"
    console.print()
    console.print(
        f"{number(seen.cost.params)} parameters, {macs}; {len(seen.compressible)} of {len(seen.sites)} layers compressible, "
        f"with {share:.1f} % of the parameters",
        highlight=False,
    )
    for note in filter(None, (seen.feeding.taken, seen.feeding.refused)):
        console.print(note, highlight=False, soft_wrap=True)
