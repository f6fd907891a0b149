"""A graph that also gives what it computes on the way."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir


def exposed(model: onnx_ir.Model, names: Iterable[str]) -> onnx_ir.Model:
    """A copy of `model` that also gives the values of these names. Raises KeyError for a name that no node of its graph gives."""
    shown = model.clone()
    values = {value.name: value for node in shown.graph for value in node.outputs}
    held = {value.name for value in shown.graph.outputs}
    # A value without a type stays so: onnxruntime finds it out.
    shown.graph.outputs.extend(values[name] for name in dict.fromkeys(names) if name not in held)
    return shown
