"""What all kinds of layer ask of a stored weight and bias before they can be described."""

from __future__ import annotations

import onnx_ir as ir

from batude_onnx.layers import constants
from batude_onnx.layers.constants import Held
from batude_onnx.layers.registry import Whole


def stored_weight(value: ir.Value | None, what: str) -> tuple[Held, tuple[int, ...]]:
    """The weight behind `value` and the shape in which the node reads it; raises `Whole`, `what` being its name in words."""
    weight = constants.held(value)
    if weight is None:
        raise Whole(f"{what} is {constants.made_by(value)}")
    stored = constants.tensor(weight.root)
    if stored.dtype == ir.DataType.BFLOAT16:
        coarse = "factors rounded to its 8 bits once more are too far off to be proved"
        raise Whole(
            f"its weight is stored as BFLOAT16, and {coarse}: compress the model in single precision and round the result"
        )
    if stored.dtype not in constants.FLOATS:
        raise Whole(f"its weight is stored as {stored.dtype.name}, not as floating point")
    if weight.dtype not in constants.FLOATS:
        raise Whole(f"its weight is read as {weight.dtype.name}, not as floating point that can be factored")
    shape = tuple(int(size) for size in stored.shape.numpy())
    return weight, shape if weight.axes is None else tuple(shape[axis] for axis in weight.axes)


def stored_bias(node: ir.Node) -> Held | None:
    """The bias, input 2, None where there is none; raises `Whole` where it is no constant."""
    given = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constants.held(given)
    if given is not None and bias is None:
        raise Whole(f"its bias is {constants.made_by(given)}")
    return bias
