"""`batude-onnx compress`: a model and a budget in, a smaller model that is proved out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from batude_onnx.budget import amount
from batude_onnx.cli.options import console_for, finite, guarded, json_option, plain, seconds_of
from batude_onnx.cli.runs import run_options, settings_of
from batude_onnx.settings import DEFAULT_EPOCHS


@click.command()
@run_options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: MODEL with the budget in its name, here.")
@click.option(
    "--epochs", type=click.FloatRange(0), callback=finite, show_default=f"{DEFAULT_EPOCHS:g}",
    help="Passes over the training data in all; 0 trains nothing.",
)  # fmt: skip
@click.option(
    "--time", "seconds", callback=seconds_of, metavar="DURATION",
    help="In the place of --epochs: wall-clock time for the whole run, such as 90s, 20m, 1.5h.",
)  # fmt: skip
@click.option("--no-simplify", is_flag=True, help="Leave the rewritten graph as it is, without onnxsim.")
@json_option
@guarded
def compress(
    output: Path | None, epochs: float | None, seconds: float | None, no_simplify: bool, as_json: bool, **given: Any
) -> None:
    """Write a smaller MODEL that keeps the budget and is proved to compute what was trained."""
    from batude_onnx.pipeline import compress as run
    from batude_onnx.report import ConsoleWatch, comparison_table, rank_table, to_json

    for name, value in (("--time", seconds), ("--epochs", epochs)):
        if given["data"] is None and value:
            raise click.UsageError(f"{name} without --data: give the data, or leave this out")
    if epochs is not None and seconds is not None:
        raise click.UsageError("--epochs and --time both say how long to train: give one of them")
    wanted = plain(",".join(given["budget"])) or "planned"
    settings = settings_of(
        given,
        output or Path(f"{given['model'].stem}-{wanted}.onnx"),
        epochs=DEFAULT_EPOCHS if epochs is None else epochs,
        seconds=seconds,
        simplify=not no_simplify,
    )
    console = console_for(stderr=as_json)
    with ConsoleWatch(console) as watch:
        verdict = run(settings, watch)
    if as_json:
        click.echo(to_json(verdict))
        return
    console.print()
    console.print(rank_table(verdict))
    console.print()
    console.print(comparison_table(verdict.comparison))
    console.print()
    worst = max(verdict.parity, key=lambda difference: difference.max_absolute)
    for kept in verdict.budget.limits:
        console.print(f"budget {kept.text}: at most {amount(kept.limit, kept.metric)}, kept", highlight=False)
    made = "trained" if verdict.history else "factored"
    console.print(f"parity with what was {made}: {worst.max_absolute:.1e} at most, on output {worst.output}", highlight=False)
    console.print(f"written in {verdict.facts['seconds']} s: {settings.output} and {settings.output.with_suffix('.json').name}",
                  highlight=False, soft_wrap=True)  # fmt: skip
