"""Smaller, and as much faster: what stands on docs/SPEED.md.

    python -m tools.bench_speed run [--only TEXT] [--again]
    python -m tools.bench_speed make [--only TEXT]
    python -m tools.bench_speed measure
    python -m tools.bench_speed render

`run`: budgets on full-size networks (with random weights, which serve for speed), compressed without data and run in turns with
the original (`batude-onnx bench`). `make`: the files of the comparison with peers at equal latency, which are trained, or why
there can be none; `measure` scores and times them. `run` and `measure` want a machine that does nothing else. Results are one
JSON file a row and machine under results/speed/; a row that has one is not run again.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from batude_onnx.errors import BudgetError, BudgetMissedError
from batude_onnx.loading import write_text
from batude_onnx.report import ConsoleWatch, to_json
from tools.speed import equal, page, rows

RESULTS = Path("results")


@click.group()
def main() -> None:
    """The rows of docs/SPEED.md."""


@main.command("run")
@click.option("--only", default="", help="Only rows whose name holds this text.")
@click.option("--again", is_flag=True, help="Also those that have a result already.")
def run_rows(only: str, again: bool) -> None:
    """Run the rows that have no result yet, one at a time."""
    for row in rows.ROWS:
        path = RESULTS / "speed" / rows.file_name(row)
        if only not in row.name or (path.exists() and not again):
            continue
        click.echo(f"{row.name}: running")
        record = rows.run(row)
        write_text(path, to_json(record))
        click.echo(f"{row.name}: {record['latency']['ratio']:.2f}x as fast")  # type: ignore[index]


@main.command("make")
@click.option("--only", default="", help="Only rows whose name holds this text.")
def make(only: str) -> None:
    """Make the files of equal latency that are not there yet."""
    for row in equal.ROWS:
        path = _result(row)
        if only not in row.name or row.output.exists() or path.exists():
            continue
        click.echo(f"{row.name}: running")
        with ConsoleWatch(Console(width=110)) as watch:
            try:
                equal.make(row, watch)
            except BudgetError as error:
                click.echo(f"{row.name}: {error}")
                write_text(path, to_json(equal.refused(row, error)))
            except BudgetMissedError as error:
                # It can be met, as the plan was; another time, on a machine that does nothing else, it may be.
                click.echo(f"{row.name}: {error}")


@main.command("measure")
@click.option("--only", default="", help="Only rows whose name holds this text.")
def measure(only: str) -> None:
    """Score and time those files, one after the other."""
    for row in equal.ROWS:
        if only in row.name and row.output.exists():
            record = equal.measure(row)
            write_text(_result(row), to_json(record))
            click.echo(f"{row.name}: {record['latency']['ratio']:.2f}x as fast")  # type: ignore[index]


@main.command("render")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/SPEED.md"), show_default=True)
def render_page(output: Path) -> None:
    """Write the page."""
    output.write_text(page.render(load(RESULTS)))


def load(results: Path) -> page.Results:
    """What there is of all three kinds, by the path within the folder `results`."""
    found = [*results.glob("speed/**/*.json"), *results.glob("solver/*.json")]
    return {path.relative_to(results).with_suffix("").as_posix(): json.loads(path.read_text()) for path in sorted(found)}


def _result(row: equal.Row) -> Path:
    return RESULTS / "speed" / "equal" / f"{row.name}.json"


if __name__ == "__main__":
    main()
