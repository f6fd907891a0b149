"""Concrete shapes of every value in a graph, for one sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper, shape_inference
from onnx.external_data_helper import uses_external_data

from batude_onnx.layers.registry import Shapes

# No axis is longer, and what describes a shape has no more elements.
LARGEST, SHORT = 2**23, 1024
INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)


def infer_shapes(model: ir.Model, inputs: Mapping[str, tuple[int, ...]] | None = None) -> Shapes:
    """Shape of each value, by name, with the inputs fixed; of values in bodies too, where names are distinct.

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
    shapes: Shapes = {}
    _clamp(proto.graph)
    try:
        inferred = shape_inference.infer_shapes(proto, data_prop=True).graph
    except shape_inference.InferenceError:
        # A file may say of its inner values what is not so, and run all the same: a run then has to show the shapes.
        inferred = proto.graph
    for graph in _graphs(inferred):
        shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            _note(value, shapes)
    return shapes


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all bodies in it."""
    yield graph
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        for body in (attribute.g, *attribute.graphs):
            yield from _graphs(body)


def _clamp(graph: onnx.GraphProto) -> None:
    """Bring whole numbers of more than `LARGEST` down to it.

    As the end of a slice they mean the same; as a size they can only be damage, and inference would go through a vector of
    that length element by element.
    """
    tensors = list(graph.initializer)
    tensors += [attribute.t for node in graph.node if node.op_type == "Constant" for attribute in node.attribute]
    for tensor in tensors:
        if tensor.data_type not in INTEGERS or prod(tensor.dims) > SHORT or uses_external_data(tensor):
            continue
        numbers = numpy_helper.to_array(tensor)
        if np.abs(numbers.astype(np.float64)).max(initial=0) > LARGEST:
            tensor.CopyFrom(numpy_helper.from_array(numbers.clip(-LARGEST, LARGEST).astype(numbers.dtype), tensor.name))


def _note(value: onnx.ValueInfoProto, shapes: Shapes) -> None:
    if not value.type.tensor_type.HasField("shape"):
        return
    dims = value.type.tensor_type.shape.dim
    if all(dim.HasField("dim_value") for dim in dims):
        shapes[value.name] = tuple(dim.dim_value for dim in dims)
