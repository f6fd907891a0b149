"""The paper's tables, from ONNX files: run what is missing, render what is there.

    python -m tools.paper_tables run [--only TEXT] [--device cuda]
    python -m tools.paper_tables render

The tables come first, then the ablations. A row is run once: its JSON file under results/ says that it is done, and by which
settings; it is run again when these have changed. Rows run one at a time; a killed one is run again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from batude_onnx.errors import BatudeError
from batude_onnx.report import ConsoleWatch
from tools.tables.rendering import load, render
from tools.tables.rows import MODELS, ROWS
from tools.tables.running import finished, locate, run
from tools.tables.variants import GROUPS

RESULTS = Path("results")


@click.group()
def main() -> None:
    """The tables of docs/RESULTS.md."""


@main.command("run")
@click.option("--only", default="", help="Only rows whose name holds this text.")
@click.option("--models", type=click.Path(file_okay=False, path_type=Path), default=Path("../shared/models"), show_default=True)
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), default=Path("data"), show_default=True)
@click.option("--device", default="cpu", show_default=True)
def run_rows(only: str, models: Path, data: Path, device: str) -> None:
    """Run the rows that have no result yet."""
    failed = 0
    for row in dict.fromkeys((*ROWS, *(row for group in GROUPS for row in group.rows()))):
        if only not in row.name or finished(row, RESULTS):
            continue
        model = MODELS[row.model]
        wanted = [locate(model.file, models), data / f"{model.data}.npz"]
        wanted += [data / model.pictures] if model.pictures else []
        missing = [path for path in wanted if not path.exists()]
        if missing:
            click.echo(f"{row.name}: not run, {', '.join(map(str, missing))} is not there")
            continue
        click.echo(f"{row.name}: running")
        with ConsoleWatch(Console(width=110)) as watch:
            try:
                click.echo(f"{row.name}: {run(row, models, data, RESULTS, device, watch)}")
            except BatudeError as error:
                failed += 1
                click.echo(f"{row.name}: failed: {error}", err=True)
    sys.exit(bool(failed))


@main.command("render")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/RESULTS.md"), show_default=True)
def render_page(output: Path) -> None:
    """Write the page."""
    output.parent.mkdir(exist_ok=True)
    output.write_text(render(load(RESULTS)))


if __name__ == "__main__":
    main()
