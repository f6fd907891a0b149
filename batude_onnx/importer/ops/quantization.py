"""QuantizeLinear and DequantizeLinear.

Quantised values that only DequantizeLinear reads stay whole numbers of the float type: integers could carry no gradient.
Rounding passes it on unchanged, saturation stops it (the straight-through estimator, https://arxiv.org/abs/1308.3432).
Everyone else gets integers, as in the file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import DTYPES, NodeView

_VERSIONS = (10, 13, 19, 21, 23, 24, 25, 28)


def _spread(values: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point against x: one for all, one for each place along `axis`, or one for each block of places."""
    if values.numel() == 1 and not block:
        return values.reshape(())
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return values.view([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])


def _quantised_type(node: NodeView) -> torch.dtype:
    kind = node.dtype(2)
    if node.given("output_dtype") and node.attr_int("output_dtype"):
        return node.torch_type("output_dtype")
    return torch.uint8 if kind is None else DTYPES[kind]


def _saturated(x: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x rounded to even, moved by the zero point, and clamped to what the type holds, as float; gradients as said above."""
    limits = torch.iinfo(dtype)
    whole = x + (torch.round(x) - x).detach()
    return torch.clamp(whole if zero is None else whole + zero, limits.min, limits.max)


@op("QuantizeLinear", *_VERSIONS)
def quantize(node: NodeView) -> Op:
    """round(x / scale) + zero point, saturated; the quotient is of the scale's type or of `precision`."""
    axis, block, dtype = node.attr_int("axis", 1), node.attr_int("block_size", 0), _quantised_type(node)
    if dtype.is_floating_point or dtype is torch.bool:
        raise node.refuse("type of the quantised values", str(dtype), "use an integer type")
    precision = node.torch_type("precision") if node.attr_int("precision", 0) else None
    readers = node.readers(0)
    as_float = bool(readers) and all(reader == "DequantizeLinear" for reader in readers)

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        kind = precision or scale.dtype
        quotient = x.to(kind) / _spread(scale.to(kind), x, axis, block)
        # Sums of a rounded number and a zero point do not fit into half precision.
        wide = quotient if quotient.dtype is torch.float64 else quotient.float()
        moved = None if zero is None else _spread(zero, x, axis, block).to(wide.dtype)
        y = _saturated(wide, moved, dtype)
        return y if as_float else y.to(dtype)

    return run


@op("DequantizeLinear", *_VERSIONS)
def dequantize(node: NodeView) -> Op:
    """(x - zero point) scale, of the scale's type or of `output_dtype`."""
    axis, block = node.attr_int("axis", 1), node.attr_int("block_size", 0)
    wanted = node.torch_type("output_dtype") if node.attr_int("output_dtype", 0) else None

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        kind = wanted or scale.dtype
        # Differences are exact: of bytes in single precision, of wider integers in double.
        wide = x if x.is_floating_point() else x.to(torch.float64 if x.dtype.itemsize > 2 else torch.float32)
        moved = wide if zero is None else wide - _spread(zero, x, axis, block).to(wide.dtype)
        factor = _spread(scale, x, axis, block)
        if kind in (torch.float16, torch.bfloat16):
            return (moved * factor.float()).to(kind)
        return moved.to(kind) * factor.to(kind)

    return run


@op("DynamicQuantizeLinear", 11)
def dynamic_quantize(node: NodeView) -> Op:
    """-> uint8 values, scale, zero point; the range is x's own, widened to hold 0."""

    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
        scale = (high - low) / 255
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero = torch.round((-low / scale).clamp(0, 255))
        return _saturated(x / scale, zero, torch.uint8).to(torch.uint8), scale, zero.to(torch.uint8)

    return run
