"""One row of the tables: compressed, proved, and written down with everything that it depends on."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from batude_onnx.loading.writing import write_atomically
from batude_onnx.pipeline import compress
from batude_onnx.report import to_json
from batude_onnx.settings import Settings, Source, Watch
from tools.tables import baselines as baselines
from tools.tables import variants as variants
from tools.tables.rows import MODELS, Row

PACKAGES = ("batude-onnx", "torch", "onnx", "onnx-ir", "numpy")


def hardware(device: str) -> dict[str, object]:
    """What the row ran on."""
    found: dict[str, object] = {"cpu": _cpu(), "cores": os.cpu_count(), "device": device, "system": platform.system()}
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _cpu() -> str:
    """The processor's name, and the instructions that decide how fast it trains."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    wide = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(name)]
    return f"{capabilities.get('cpu_name', platform.processor())} ({', '.join(wide)})"


def locate(file: Path, models: Path) -> Path:
    """Where a model lies: in the folder of published weights, or in the project."""
    return models / file if (models / file).exists() else file


def run(row: Row, models: Path, data: Path, results: Path, device: str, watch: Watch) -> Path:
    """Run `row`; the JSON file under `results` that says what came out."""
    model = MODELS[row.model]
    output = Path("build") / "tables" / f"{row.name}.onnx"
    output.parent.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        model=locate(model.file, models),
        output=output,
        budget=row.budget,
        data=Source(data / f"{model.data}.npz", row.limit),
        epochs=row.epochs,
        recipe=row.method,
        seed=row.seed,
        device=device,
    )
    verdict = compress(settings, watch)
    comparison = verdict.comparison
    record = {
        "row": asdict(row),
        "test_images": comparison.quality_other["n"],
        "before": {**asdict(comparison.cost_original), "top1": comparison.quality_original["top1"]},
        "after": {**asdict(comparison.cost_other), "top1": comparison.quality_other["top1"]},
        "agreement": comparison.quality_other["top1_agreement"],
        "ranks": verdict.ranks,
        "methods": verdict.methods,
        "seconds": verdict.facts["seconds"],
        "training_samples": verdict.facts["training_samples"],
        "hardware": hardware(device),
        "threads": verdict.facts["threads"],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "history": verdict.history,
    }
    results.mkdir(exist_ok=True)
    path = results / f"{row.name}.json"

    def save(target: Path) -> None:
        target.write_text(to_json(record) + "\n")

    write_atomically(path, save)
    return path
