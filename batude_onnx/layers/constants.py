"""Where a weight really lives: an initializer, a Constant node, or an Identity of one of these."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from batude_onnx.records import FloatArray

FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


def source(value: ir.Value | None) -> ir.Value | None:
    """The initializer or Constant output that `value` stands for, or None where it is computed or fed."""
    while value is not None:
        if value.const_value is not None:
            return value
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Constant":
            return value
        if node.op_type != "Identity":
            return None
        value = node.inputs[0]
    return None


def tensor(root: ir.Value) -> ir.TensorProtocol:
    """The tensor held by a `source`."""
    node = root.producer()
    if node is not None and "value" in node.attributes:
        # As get_const_tensor does, which would also rename the file's own tensor.
        return node.attributes["value"].as_tensor()
    held = ir.convenience.get_const_tensor(root)
    if held is None:
        raise ValueError(f"{root.name} holds no tensor")
    return held


def read(root: ir.Value) -> FloatArray:
    """The values held by a `source`, as float32 (float64 stays)."""
    array = tensor(root).numpy()
    return array if array.dtype == np.float64 else array.astype(np.float32)


def store(root: ir.Value, values: FloatArray) -> None:
    """Put new values of the same shape behind a `source`, in the type that is stored there."""
    held = tensor(root)
    fresh = ir.Tensor(np.ascontiguousarray(values.astype(held.dtype.numpy())), name=root.name, doc_string=held.doc_string)
    if tuple(held.shape.numpy()) != fresh.numpy().shape:
        raise ValueError(f"{root.name}: {tuple(held.shape.numpy())} cannot take values of shape {values.shape}")
    if root.const_value is not None:
        root.const_value = fresh
        return
    node = root.producer()
    assert node is not None
    node.attributes.clear()
    node.attributes.add(ir.AttrTensor("value", fresh))


def made_by(value: ir.Value | None) -> str:
    """Where a value that is no constant comes from, in words."""
    node = None if value is None else value.producer()
    return "fed as an input" if node is None else f"computed in the graph (by {node.op_type})"


def name_of(root: ir.Value) -> str:
    """The name by which the importer knows the parameter, too."""
    if root.name is None:
        raise ValueError("a constant without a name")
    return root.name


def uses(root: ir.Value) -> int:
    """How many inputs read this constant, through however many Identities."""
    total = 0
    for node, _ in root.uses():
        total += uses(node.outputs[0]) if node.op_type == "Identity" else 1
    return total + (1 if root.is_graph_output() else 0)
