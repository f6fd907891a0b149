"""Models larger than memory through the tool: what inspecting and compressing one takes.

    python -m tools.large_model make build/large.onnx [--gigabytes 3]
    python -m tools.large_model measure build/large.onnx

`measure` runs `batude-onnx inspect`, `plan` and `compress --budget 1.5x` without data, each in a process of its own, and writes
results/large/model.json.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import click

from batude_onnx.loading import load_model, write_text
from batude_onnx.loading.model import external_files
from batude_onnx.report import to_json
from tools.large.making import Plan, make
from tools.large.measuring import measured, surroundings

RESULT = Path("results/large/model.json")
BUDGET = "1.5x"


@click.group()
def main() -> None:
    """Make a large model, or measure the memory that one takes."""


@main.command("make")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--gigabytes", default=3.0, show_default=True, help="About how much its weights take.")
def make_model(path: Path, gigabytes: float) -> None:
    """Write the model, and its data beside it."""
    plan = Plan()
    per_block = 8 * plan.channels * plan.wide
    points = round((1e9 * gigabytes - 4 * replace(plan, points=0).weights) / per_block)
    if points < 1:
        raise click.BadParameter(f"{gigabytes} GB is too little: from {(4 * replace(plan, points=1).weights) / 1e9:.2f} up")
    path.parent.mkdir(parents=True, exist_ok=True)
    plan = replace(plan, points=points)
    size = make(path, plan)
    click.echo(f"{path}: {size / 1e9:.2f} GB of weights in {asdict(plan)}")


@main.command("measure")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--budget", default=BUDGET, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=RESULT, show_default=True)
def measure(path: Path, budget: str, output: Path) -> None:
    """Run the commands and write down what they took."""
    size = sum(file.stat().st_size for file in external_files(load_model(path)))
    record: dict[str, object] = {"weights_gb": round(size / 1e9, 3), "budget": budget, **surroundings()}
    written = path.with_name(f"{path.stem}-{budget}.onnx")
    asked = [str(path), "--budget", budget, "-o"]
    runs = {
        "inspect": ["inspect", str(path)],
        "plan": ["plan", *asked, str(written.with_suffix(".plan.json"))],
        "compress": ["compress", *asked, str(written)],
    }
    for name, arguments in runs.items():
        record[name] = found = measured(arguments)
        click.echo(f"{name}: {found['peak_mb']} MB at most, {found['own_peak_mb']} MB of its own, in {found['seconds']} s")
    verdict = json.loads(written.with_suffix(".json").read_text())
    record["proved"] = {name: verdict[name] for name in ("surgery", "parity")} | {
        "before": verdict["comparison"]["cost_original"],
        "after": verdict["comparison"]["cost_other"],
        "replaced": len(verdict["ranks"]),
    }
    output.parent.mkdir(parents=True, exist_ok=True)

    write_text(output, to_json(record))


if __name__ == "__main__":
    main()
