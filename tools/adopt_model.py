"""A compressed model taken into models/, with what its run's report says of it.

python -m tools.adopt_model build/resnet20-cifar10-2.6x.onnx
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import click

from batude_onnx.loading import write_text
from tools.render_models import render


def facts(path: Path, report: dict[str, Any], original: Path, data: Path) -> dict[str, Any]:
    """What stands in models/README.md of the model at `path`; the command that made it among it."""
    run, found, budget = report["facts"], report["comparison"], ",".join(limit["text"] for limit in report["budget"]["limits"])
    before, after = found["cost_original"], found["cost_other"]
    command = f"batude-onnx compress {original} --budget {budget} --seed {run['seed']}"
    if run["training_samples"]:
        command += f" --data {data} --epochs {run['epochs']:g} --recipe {run['recipe']}"
    if run["threads"]:
        command += f" --threads {run['threads']}"
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "compressed_from": original.name,
        "budget": budget,
        "test_accuracy": round(found["quality_other"]["top1"], 2),
        "of_the_original": round(found["quality_original"]["top1"], 2),
        "test_images": found["quality_other"]["n"],
        "parameters": f"{before['params']:,} to {after['params']:,}",
        "MACs": f"{before['macs']:,} to {after['macs']:,}",
        **{name: run[name] for name in ("recipe", "epochs", "seed", "seconds", "device", "threads", "torch", "machine")},
        "commands": [f"{command} -o models/{path.name}"],
    }


@click.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--original", type=click.Path(exists=True, path_type=Path), default=Path("models/resnet20-cifar10.onnx"))
@click.option("--data", type=click.Path(path_type=Path), default=Path("data/cifar10.npz"))
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path("models"))
def main(path: Path, original: Path, data: Path, folder: Path) -> None:
    """Copy the model at PATH, and write down what its run's report, beside it, says."""
    report = json.loads(path.with_suffix(".json").read_text())
    taken = folder / path.name
    shutil.copyfile(path, taken)
    write_text(taken.with_suffix(".json"), json.dumps(facts(taken, report, original, data), indent=2))
    (folder / "README.md").write_text(render(folder))


if __name__ == "__main__":
    main()
