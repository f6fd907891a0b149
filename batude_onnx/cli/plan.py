"""`batude-onnx plan`: the ranks that a budget leads to and what they promise, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from batude_onnx.cli.options import console_for, guarded, json_option, plain
from batude_onnx.cli.runs import run_options, settings_of


@click.command()
@run_options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: MODEL with the budget in its name, here.")
@click.option(
    "--sweep",
    multiple=True,
    metavar="BUDGETS",
    help="Other budgets to look at, with commas between: 1.5x,2x,3x,5x.",
)
@click.option("--sensitivity", is_flag=True, help="Show, too, what truncating each layer alone does.")
@json_option
@guarded
def plan(output: Path | None, sweep: tuple[str, ...], sensitivity: bool, as_json: bool, **given: Any) -> None:
    """Say which ranks MODEL would get under the budget, and what they promise; write them to a file that may be edited."""
    from batude_onnx.pipeline import plan as run
    from batude_onnx.report import ConsoleWatch, plan_table, promise_table, sensitivity_table, sweep_table, to_json

    budgets = [text.strip() for texts in sweep for text in texts.split(",")]
    wanted = plain(",".join(given["budget"])) or "planned"
    settings = settings_of(given, output or Path(f"{given['model'].stem}-{wanted}-plan.json"))
    console = console_for(stderr=as_json)
    with ConsoleWatch(console) as watch:
        found = run(settings, watch, sweep=budgets, sensitivity=sensitivity)
    if as_json:
        click.echo(to_json(found))
        return
    tables = [plan_table(found), promise_table(found)]
    tables += [sweep_table(found)] if found.sweep else []
    tables += [sensitivity_table(found)] if found.sensitivity else []
    for table in tables:
        console.print()
        console.print(table)
    console.print()
    follow = f"batude-onnx compress {settings.model} --plan {settings.output}"
    console.print(f"written: {settings.output}; edit it or not, and: {follow}", highlight=False, soft_wrap=True)
