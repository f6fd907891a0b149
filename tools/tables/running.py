"""One row of the tables: compressed, proved, and written down with everything that it depends on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from batude_onnx.decomposition import methods
from batude_onnx.loading import write_text
from batude_onnx.pipeline import compress
from batude_onnx.report import to_json
from batude_onnx.settings import Settings, Source, Watch
from batude_onnx.training.recipe import RECIPES
from tools.super_resolution import mean_psnr, pairs_of
from tools.tables import baselines as baselines
from tools.tables.rows import MODELS, SCALE, Row
from tools.tables.variants import SUITED

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


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _scores(quality: Mapping[str, float]) -> dict[str, float]:
    return {name: quality[name] for name in ("top1", "cross_entropy", "top1_agreement", "psnr") if name in quality}


def described(method: str) -> dict[str, Any]:
    """The settings behind a method's name, as JSON gives them back; "ways" are the methods that may factor a layer, where there
    is a choice."""
    recipe = RECIPES[method]
    ways = [way.name for way in methods() if recipe.takes(way)] if recipe.formats else None
    return dict(json.loads(to_json({**asdict(recipe), "rules": recipe.rules.__name__, "ways": ways})))


def finished(row: Row, results: Path) -> bool:
    """Whether there is a result of this row, by its recipe as it is now."""
    path = results / f"{row.name}.json"
    return path.exists() and json.loads(path.read_text())["recipe"] == described(row.method)


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
        budget=f"{row.metric}={row.budget}",
        # As in the paper, and for all methods alike: ranks as they come out, whatever suits this machine.
        rank_multiple=None if row.method == SUITED else 1,
        data=Source(data / f"{model.data}.npz", row.limit),
        epochs=row.epochs,
        recipe=row.method,
        seed=row.seed,
        device=device,
    )
    verdict = compress(settings, watch)
    comparison = verdict.comparison
    before, after = dict(comparison.quality_original), dict(comparison.quality_other)
    count = after["n"]
    if model.pictures:
        pairs = pairs_of(data / model.pictures, SCALE)
        before["psnr"], after["psnr"] = (mean_psnr(path, pairs, SCALE) for path in (settings.model, output))
        count = len(pairs)
    record = {
        "row": asdict(row),
        "recipe": described(row.method),
        "test_images": count,
        "before": {**asdict(comparison.cost_original), **_scores(before)},
        "after": {**asdict(comparison.cost_other), **_scores(after)},
        "latency": comparison.latency,
        "ranks": verdict.ranks,
        "methods": verdict.methods,
        "seconds": verdict.facts["seconds"],
        "judged": verdict.facts["judged"],
        "training_samples": verdict.facts["training_samples"],
        "hardware": hardware(device),
        "threads": verdict.facts["threads"],
        "versions": versions(),
        "history": verdict.history,
    }
    results.mkdir(exist_ok=True)
    path = results / f"{row.name}.json"

    write_text(path, to_json(record))
    return path
