"""One model through the tool: imported or cut, compressed from its weights alone, proved."""

from __future__ import annotations

import resource
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir

from batude_onnx.errors import BatudeError, NothingToCompressError, UnsupportedError
from batude_onnx.feeding import read_inputs
from batude_onnx.importer import import_graph
from batude_onnx.loading import load_model
from batude_onnx.pipeline import compress
from batude_onnx.proving import Survey, survey
from batude_onnx.records import Wishes
from batude_onnx.settings import Settings, Watch
from tools.tables.running import hardware, versions
from tools.zoo.models import Model

# The compressible layers' MACs (or parameters) are divided by this.
RATIO = 1.5


class _Said(Watch):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def run(model: Model, path: Path, output: Path) -> dict[str, Any]:
    """What came out, as plain values; `failed` where the tool did not do what it promises."""
    began = time.monotonic()
    wishes = Wishes(read_inputs(model.inputs))
    record: dict[str, Any] = {"name": model.name, "package": model.package or "published weights", "bytes": path.stat().st_size}
    try:
        loaded = load_model(path)
        seen = survey(loaded, wishes)
        ops = Counter(node.op_type for node in loaded.graph)
        record |= {"nodes": sum(ops.values()), "ops": dict(sorted(ops.items())), "opset": loaded.graph.opset_imports.get("", 0)}
        record["inputs"] = {name: list(shape) for name, shape in seen.feeding.shapes().items()}
        record |= {"layers": len(seen.sites), "compressible": len(seen.compressible), "cost": asdict(seen.cost)}
        record["left_alone"] = dict(Counter(str(site.reason) for site in seen.sites if site.reason))
        record["imported"] = _imported(loaded)
        record |= _compressed(wishes, path, output, seen)
    except NothingToCompressError as error:
        record["refused"] = str(error).removeprefix(f"{path}: ")
    except BatudeError as error:
        record["failed"] = str(error)
    record |= {"hardware": hardware("cpu"), "versions": versions()}
    record["seconds"] = round(time.monotonic() - began, 1)
    record["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return record


def _imported(model: ir.Model) -> str:
    """What cannot be imported of a model, in a few words."""
    try:
        net = import_graph(model, cut=True)
    except UnsupportedError as error:
        return str(error).splitlines()[0]
    return net.refused.splitlines()[0] if net.refused else "whole"


def _budget(seen: Survey) -> tuple[str, int]:
    """MACs, or parameters where MACs cannot be counted (sizes within a body are known to its runs only); and how many."""
    metric = "macs" if all(site.positions for site in seen.compressible) else "params"
    within = sum(int(getattr(site, metric)) for site in seen.compressible)
    return metric, int(seen.cost.of(metric) - within + within / RATIO)


def _compressed(wishes: Wishes, path: Path, output: Path, seen: Survey) -> dict[str, Any]:
    metric, limit = _budget(seen)
    said = _Said()
    verdict = compress(Settings(model=path, output=output, budget=f"{metric}={limit}", inputs=wishes), said)
    surgery = max(verdict.surgery, key=lambda difference: difference.max_absolute)
    parity = max(verdict.parity, key=lambda difference: difference.max_absolute)
    return {
        "metric": metric,
        "macs": verdict.comparison.cost_other.macs,
        "params": verdict.comparison.cost_other.params,
        "replaced": len(verdict.ranks),
        "methods": dict(Counter(verdict.methods.values())),
        "surgery": asdict(surgery),
        "parity": asdict(parity),
        "latency": verdict.comparison.latency["ratio"],
        "said": said.lines,
    }
