"""Shapes, ranges, fills, casts, and what passes its input through."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor

from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import DTYPES, NodeView, listed


@op("Identity", 1, 13, 14, 16, 19, 21, 23, 24, 25)
def identity(node: NodeView) -> Op:
    return lambda x: x


@op("Dropout", 7, 10, 12, 13, 22)
def dropout(node: NodeView) -> Op:
    """Does nothing, and its mask keeps all, as in onnxruntime; training here never drops either."""
    if node.has(2) and node.scalar(2) in (True, None):
        raise node.refuse("training_mode", node.scalar(2) or "a computed value", "export the network in evaluation mode")
    if node.used(1):
        # The mask is of the data's type before opset 10.
        kept = torch.bool if node.opset >= 10 else None
        return lambda x, *_: (x, torch.ones_like(x, dtype=kept))
    return lambda x, *_: x


@op("Shape", 1, 13, 15, 19, 21, 23, 24, 25, makes_host=True)
def shape(node: NodeView) -> Op:
    """Sizes of the axes from `start` to before `end`, in CPU memory."""
    first, last = node.attr_int("start", 0), node.attr_int("end") if node.given("end") else None
    return lambda x: torch.tensor(x.shape[first:last], dtype=torch.int64)


@op("Size", 1, 13, 19, 21, 23, 24, 25, makes_host=True)
def size(node: NodeView) -> Op:
    return lambda x: torch.tensor(x.numel(), dtype=torch.int64)


@op("Range", 11, 27, host=(0, 1, 2))
def value_range(node: NodeView) -> Op:
    """start, limit, delta, all scalars; the limit is left out."""

    def run(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
        return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)

    return run


@op("ConstantOfShape", 9, 20, 21, 23, 24, 25, host=(0,))
def constant_of_shape(node: NodeView) -> Op:
    """A tensor of one value, 0.0 by default."""
    fixed = node.integers(0)
    value = node.array("value")
    number = 0.0 if value is None else value.reshape(-1)[0].item()
    dtype = torch.float32 if value is None else DTYPES[ir.DataType.from_numpy(value.dtype)]
    return lambda wanted: torch.full(listed(fixed, wanted), number, dtype=dtype)


@op("Cast", 6, 9, 13, 19, 21, 23, 24, 25, 28)
def cast(node: NodeView) -> Op:
    dtype = node.torch_type("to")
    return lambda x: x.to(dtype)


@op("CastLike", 15, 19, 21, 23, 24, 25)
def cast_like(node: NodeView) -> Op:
    return lambda x, like: x.to(like.dtype)


@op("BitCast", 26)
def bit_cast(node: NodeView) -> Op:
    """The same bits read as another type of the same width."""
    dtype = node.torch_type("to")
    return lambda x: x.view(dtype)


@op("EyeLike", 9, 22)
def eye_like(node: NodeView) -> Op:
    """Ones on diagonal `k` of a matrix of the input's shape, zeros elsewhere."""
    k, dtype = node.attr_int("k", 0), node.torch_type("dtype") if node.given("dtype") else None

    def run(x: Tensor) -> Tensor:
        rows, columns = (torch.arange(size, device=x.device) for size in x.shape)
        return (columns == rows.unsqueeze(1) + k).to(dtype or x.dtype)

    return run
