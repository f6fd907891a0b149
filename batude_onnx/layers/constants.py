"""Where a weight really lives: an initializer or a Constant node, perhaps behind Identity, Cast and Transpose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from batude_onnx.records import FloatArray

FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)
# What a weight may pass on the way to its layer: another type, or another order of its axes.
PASSED = ("Identity", "Cast", "Transpose")
TYPES = {int(dtype) for dtype in ir.DataType}
# Of the largest value of a new weight: what is smaller is noise of the arithmetic that made it. A decomposition leaves it where a
# layer has nothing but zeros, as in channels that died in training. Folded into the small scale of a BatchNorm it becomes
# subnormal, and a layer that multiplies such numbers was seen to take ten times as long.
NOISE = 1e-14
ONNX_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Held:
    """A constant as a node reads it. `axes`: the order in which the stored axes are read, None where it is their own."""

    root: ir.Value
    axes: tuple[int, ...] | None
    dtype: ir.DataType


def source(value: ir.Value | None) -> ir.Value | None:
    """The initializer or Constant output that `value` stands for, or None where it is computed or fed."""
    way = _way(value)
    return None if way is None else way[0]


def held(value: ir.Value | None) -> Held | None:
    """The constant that `value` stands for and what becomes of it on the way, or None where it is computed or fed."""
    way = _way(value)
    if way is None:
        return None
    root, nodes = way
    stored = tensor(root)
    axes, dtype = tuple(range(len(stored.shape))), stored.dtype
    for node in nodes:
        if node.op_type == "Transpose":
            given = node.attributes.get("perm")
            order = range(len(axes))[::-1] if given is None else given.as_ints()
            if sorted(order) != list(range(len(axes))):
                return None  # no order of its axes
            axes = tuple(axes[axis] for axis in order)
        elif node.op_type == "Cast":
            if (to := node.attributes["to"].as_int()) not in TYPES:
                return None
            dtype = ir.DataType(to)
    return Held(root, None if axes == tuple(range(len(axes))) else axes, dtype)


def _way(value: ir.Value | None) -> tuple[ir.Value, list[ir.Node]] | None:
    """The root of a constant, and the nodes between it and `value` in the order in which data passes them."""
    nodes: list[ir.Node] = []
    while value is not None:
        node = value.producer()
        if value.const_value is not None or (node is not None and _is(node, "Constant") and not left_to_callers(node)):
            return value, nodes[::-1]
        if node is None or not _is(node, *PASSED) or left_to_callers(node):
            return None
        nodes.append(node)
        value = node.inputs[0]
    return None


def left_to_callers(node: ir.Node) -> list[str]:
    """The attributes of a node in a function that each call of it sets."""
    return [name for name, attribute in node.attributes.items() if attribute.is_ref()]


def _is(node: ir.Node, *ops: str) -> bool:
    return node.op_type in ops and node.domain in ONNX_DOMAINS


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


def read(root: ir.Value, dtype: ir.DataType | None = None) -> FloatArray:
    """A copy of the values held by a `source`, rounded to `dtype` where it is given, as float32 (float64 stays).

    Of a tensor in another file nothing else stays in memory.
    """
    held = tensor(root)
    array = held.numpy()
    array = array.astype(array.dtype if dtype is None else dtype.numpy())
    if isinstance(held, ir.ExternalTensor):
        held.release()
    return array if array.dtype == np.float64 else array.astype(np.float32, copy=False)


def as_stored(values: FloatArray, dtype: ir.DataType) -> FloatArray:
    """New values as they are written: of the type `dtype`, and zero where they are noise."""
    stored = np.array(values, dtype=dtype.numpy(), order="C")
    sizes = np.abs(stored)
    stored[sizes < NOISE * float(sizes.max(initial=0))] = 0
    return stored


def store(root: ir.Value, values: FloatArray) -> None:
    """Put new values of the same shape behind a `source`, in the type that is stored there."""
    stored = tensor(root)
    fresh = ir.Tensor(
        as_stored(values, stored.dtype),
        name=root.name,
        doc_string=stored.doc_string,
        metadata_props=dict(stored.metadata_props),
    )
    if tuple(stored.shape.numpy()) != fresh.numpy().shape:
        raise ValueError(f"{root.name}: {tuple(stored.shape.numpy())} cannot take values of shape {values.shape}")
    if root.const_value is not None:
        root.const_value = fresh
        return
    node = root.producer()
    assert node is not None
    node.attributes.clear()
    node.attributes.add(ir.AttrTensor("value", fresh))


def made_by(value: ir.Value | None) -> str:
    """Where a value that is no constant comes from, in words, with what to do where something can be done."""
    node = nearest = None if value is None else value.producer()
    while node is not None and _is(node, *PASSED):
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    if nearest is None:
        return "fed as an input, not stored"
    if node is None or not _is(node, "DequantizeLinear"):
        return f"computed in the graph (by {nearest.op_type}), not stored"
    root = source(node.inputs[0])
    stored = "rounded on the way to it" if root is None else f"stored as {tensor(root).dtype.name}"
    return (
        f"{stored} (behind DequantizeLinear), and factors rounded once more would not compute the same: "
        "compress the float model and quantize the result"
    )


def name_of(root: ir.Value) -> str:
    """The name by which the importer knows the parameter, too."""
    if root.name is None:
        raise ValueError("a constant without a name")
    return root.name


def uses(root: ir.Value) -> int:
    """How many inputs read this constant, through however many nodes that only pass it on; an output is one of them."""
    return len(readers(root)) + sum(value.is_graph_output() for value in _passed_on(root))


def readers(root: ir.Value) -> list[tuple[ir.Node, int]]:
    """The nodes that do, with the number of the input."""
    return [(node, place) for value in _passed_on(root) for node, place in value.uses() if not _is(node, *PASSED)]


def _passed_on(root: ir.Value) -> list[ir.Value]:
    """A constant, and all values that it has become where nodes pass it on."""
    values = [root]
    for value in values:
        values += [node.outputs[0] for node, _ in value.uses() if _is(node, *PASSED)]
    return values
