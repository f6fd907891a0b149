"""Shapes as onnxruntime sees them, for graphs whose shapes no static inference can find."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy.typing as npt
import onnx_ir

from batude_onnx.validation.exposing import exposed
from batude_onnx.validation.sessions import open_graph


def measure_shapes(
    model: onnx_ir.Model, names: Iterable[str], feeds: Mapping[str, npt.NDArray[Any]]
) -> dict[str, tuple[int, ...]]:
    """The shape that each value in `names` has in a run on `feeds`; names the main graph does not compute are left out.

    Raises ModelError where onnxruntime cannot run the model.
    """
    computed = {str(value.name) for node in model.graph for value in node.outputs}
    outputs = open_graph(exposed(model, (name for name in names if name in computed))).run(feeds)
    return {name: array.shape for name, array in outputs.items()}
