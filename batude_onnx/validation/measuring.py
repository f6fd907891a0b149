"""Shapes as onnxruntime sees them, for graphs whose shapes no static inference can find."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy.typing as npt
import onnx_ir

from batude_onnx.validation.sessions import open_graph


def measure_shapes(
    model: onnx_ir.Model, names: Iterable[str], feeds: Mapping[str, npt.NDArray[Any]]
) -> dict[str, tuple[int, ...]]:
    """The shape that each value in `names` has in a run on `feeds`; names the main graph does not compute are left out.

    Raises ModelError where onnxruntime cannot run the model.
    """
    watched = model.clone()
    values = {str(value.name): value for node in watched.graph for value in node.outputs}
    shown = {value.name for value in watched.graph.outputs}
    kind = watched.graph.inputs[0].type
    for name in names:
        if name in values and name not in shown:
            if values[name].type is None:
                values[name].type = kind
            watched.graph.outputs.append(values[name])
            shown.add(name)
    outputs = open_graph(watched).run(feeds)
    return {name: array.shape for name, array in outputs.items()}
