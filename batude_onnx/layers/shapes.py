"""Concrete shapes of every value in a graph, for one sample."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir
from onnx import shape_inference

from batude_onnx.layers.registry import Shapes


def infer_shapes(model: ir.Model, inputs: Mapping[str, tuple[int, ...]] | None = None) -> Shapes:
    """Shape of each value, by name, with the inputs fixed.

    An unknown first dimension of an input counts as a batch of 1; `inputs` overrides whole shapes. Values whose shape
    depends on data are left out.
    """
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    known = {tensor.name for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        if value.name in known or not value.type.tensor_type.HasField("shape"):
            continue
        given = (inputs or {}).get(value.name)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if given is not None:
                dim.dim_value = given[axis]
            elif dim.dim_value > 0:
                continue
            elif axis == 0:
                dim.dim_value = 1
            else:
                dim.ClearField("dim_value")  # some exporters write -1 for an open size
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    shapes: Shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    inferred = shape_inference.infer_shapes(proto, data_prop=True).graph
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        _note(value, shapes)
    return shapes


def _note(value: onnx.ValueInfoProto, shapes: Shapes) -> None:
    if not value.type.tensor_type.HasField("shape"):
        return
    dims = value.type.tensor_type.shape.dim
    if all(dim.HasField("dim_value") for dim in dims):
        shapes[value.name] = tuple(dim.dim_value for dim in dims)
