"""A plan as a file that a person may read and edit: for each layer its method and its ranks, or nothing where it stays whole.

    {"budget": "2.5x", "layers": {"conv1": {"method": "tucker2", "ranks": [16, 8]}, "fc": {"ranks": null}}}

What else stands in the file is for the reader, and is not read back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batude_onnx.errors import PlanError
from batude_onnx.loading import write_text
from batude_onnx.records import Outlook
from batude_onnx.report import to_json


@dataclass(frozen=True)
class PlanFile:
    """`budget`: as it was asked for. `layers`: method and ranks by key, (None, None) for a layer that stays whole."""

    budget: str
    layers: dict[str, tuple[str | None, tuple[int, ...] | None]]


def write_plan(outlook: Outlook, path: Path) -> None:
    """The whole outlook, in which the plan stands. Raises OutputError."""
    record = json.loads(to_json(outlook))
    record["layers"] = {layer.pop("key"): layer for layer in record["layers"]}
    record["budget"] = outlook.budget.text
    write_text(path, json.dumps(record, indent=2))


def read_plan(path: Path) -> PlanFile:
    """Raises PlanError for what is no plan."""
    try:
        record: Any = json.loads(path.read_text())
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror}); give a file that `batude-onnx plan` wrote") from error
    except ValueError as error:
        raise PlanError(f"{path}: not JSON ({error}); give a file that `batude-onnx plan` wrote") from error
    layers = record.get("layers") if isinstance(record, dict) else None
    if not isinstance(layers, dict) or not isinstance(record.get("budget"), str):
        raise PlanError(f"{path}: no plan: it must hold 'budget', a text, and 'layers', an object")
    return PlanFile(record["budget"], {key: _layer(path, key, layer) for key, layer in layers.items()})


def _layer(path: Path, key: str, layer: Any) -> tuple[str | None, tuple[int, ...] | None]:
    ranks, method = (layer.get("ranks"), layer.get("method")) if isinstance(layer, dict) else (0, 0)
    if isinstance(layer, dict) and "ranks" not in layer:
        raise PlanError(f"{path}: layer {key!r} has no 'ranks': give a list of numbers, or null for the whole layer")
    if ranks is None:
        return None, None
    listed = ranks if isinstance(ranks, list) else []
    if not listed or not all(isinstance(rank, int) and rank > 0 for rank in listed) or not isinstance(method, (str, type(None))):
        raise PlanError(f"{path}: layer {key!r} must have 'ranks', a list of numbers from 1 up or null, and 'method', a name")
    return method, tuple(listed)
