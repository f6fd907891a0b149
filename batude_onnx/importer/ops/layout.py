"""Ops that only re-arrange: reshapes, transposes, broadcasts, depth to space, columns to image."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from batude_onnx.importer.ops.padding import Window, torch_pads
from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView, listed


def _follow(node: ir.Node, sizes: list[int], batch: int) -> list[int] | None:
    """What is left over goes to the first axis, which may hold the batch alone or merged with others."""
    if not sizes:
        return None
    if -1 not in sizes:
        return [-1, *sizes[1:]] if sizes[0] % batch == 0 else None
    return [0, *sizes[1:]] if sizes[0] == batch else None


@op("Reshape", 5, 13, 14, 19, 21, 23, 24, 25, host=(1,), moves="first", sizes=(1, _follow))
def reshape(node: NodeView) -> Op:
    """-1 is what is left over; 0 copies the input's size unless allowzero is set."""
    allow_zero = node.attr_int("allowzero", 0) != 0
    fixed = node.integers(1)
    if fixed is not None and (allow_zero or 0 not in fixed):
        return lambda x, _: x.reshape(fixed)

    def run(x: Tensor, shape: Tensor | None) -> Tensor:
        sizes = listed(fixed, shape)
        if not allow_zero:
            sizes = [size if size != 0 else x.shape[axis] for axis, size in enumerate(sizes)]
        return x.reshape(sizes)

    return run


@op("Flatten", 1, 9, 11, 13, 21, 23, 24, 25)
def flatten(node: NodeView) -> Op:
    """To two axes: everything before `axis`, and the rest."""
    axis = node.attr_int("axis", 1)
    if axis == 1:
        return lambda x: x.flatten(1) if x.dim() > 1 else x.reshape(-1, 1)

    def run(x: Tensor) -> Tensor:
        at = axis if axis >= 0 else axis + x.dim()
        return x.reshape(torch.Size(x.shape[:at]).numel(), -1)

    return run


@op("Transpose", 1, 13, 21, 23, 24, 25)
def transpose(node: NodeView) -> Op:
    order = node.attr_ints("perm")
    if order is None:
        return lambda x: x.permute(tuple(reversed(range(x.dim()))))
    return lambda x: x.permute(order)


@op("Squeeze", 1, 11, 13, 21, 23, 24, 25, host=(1,), moves="first")
def squeeze(node: NodeView) -> Op:
    """Axes are an attribute up to opset 12, then an input; without them all axes of size 1 go."""
    fixed = node.attr_ints("axes") if node.given("axes") else node.integers(1)

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        if fixed is None and axes is None:
            return x.squeeze()
        return x.squeeze(tuple(listed(fixed, axes)))

    return run


@op("Unsqueeze", 1, 11, 13, 21, 23, 24, 25, host=(1,), moves="first")
def unsqueeze(node: NodeView) -> Op:
    """Axes count in the result."""
    fixed = node.attr_ints("axes") if node.given("axes") else node.integers(1)
    if fixed is not None and len(fixed) == 1:
        only = fixed[0]
        return lambda x, *_: x.unsqueeze(only)

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        wanted = listed(fixed, axes)
        rank = x.dim() + len(wanted)
        for axis in sorted(axis % rank for axis in wanted):
            x = x.unsqueeze(axis)
        return x

    return run


@op("Expand", 8, 13, host=(1,))
def expand(node: NodeView) -> Op:
    """Broadcast both ways: a size of 1 on either side takes the other's."""
    fixed = node.integers(1)

    def run(x: Tensor, shape: Tensor | None) -> Tensor:
        sizes = listed(fixed, shape)
        own = [1] * (len(sizes) - x.dim()) + list(x.shape)
        sizes = [1] * (len(own) - len(sizes)) + sizes
        return x.expand([mine if wanted == 1 else wanted for mine, wanted in zip(own, sizes, strict=True)])

    return run


@op("Tile", 6, 13, host=(1,))
def tile(node: NodeView) -> Op:
    fixed = node.integers(1)
    return lambda x, repeats: x.repeat(listed(fixed, repeats))


@op("DepthToSpace", 1, 11, 13, 28)
def depth_to_space(node: NodeView) -> Op:
    """(N, C, H, W) -> (N, C / b^2, b H, b W); DCR takes the block from the outer part of the channels, CRD the inner."""
    b, mode = node.attr_int("blocksize"), node.attr_string("mode", "DCR")
    if mode == "CRD":
        return lambda x: torch.pixel_shuffle(x, b)
    if mode != "DCR":
        raise node.refuse("mode", mode, "use DCR or CRD")

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        blocks = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
        return blocks.reshape(n, c // (b * b), h * b, w * b)

    return run


@op("SpaceToDepth", 1, 13, 28)
def space_to_depth(node: NodeView) -> Op:
    """(N, C, b H, b W) -> (N, C b^2, H, W); DCR makes the block the outer part of the channels, CRD the inner."""
    b, mode = node.attr_int("blocksize"), node.attr_string("mode", "DCR")
    if mode == "CRD":
        return lambda x: torch.pixel_unshuffle(x, b)
    if mode != "DCR":
        raise node.refuse("mode", mode, "use DCR or CRD")

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        blocks = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
        return blocks.reshape(n, c * b * b, h // b, w // b)

    return run


@op("Trilu", 14, host=(1,))
def triangle(node: NodeView) -> Op:
    upper = node.attr_int("upper", 1) != 0
    fixed = node.integers(1)

    def run(x: Tensor, k: Tensor | None = None) -> Tensor:
        diagonal = listed(fixed, k)[0] if fixed is not None or k is not None else 0
        return x.triu(diagonal) if upper else x.tril(diagonal)

    return run


@op("CenterCropPad", 18, host=(1,))
def centre(node: NodeView) -> Op:
    """Each axis cropped, or padded with zeros, to the given size; an odd element less or more is at the end."""
    axes, fixed = node.attr_ints("axes"), node.integers(1)

    def run(x: Tensor, shape: Tensor | None) -> Tensor:
        begins, ends = [0] * x.dim(), [0] * x.dim()
        for axis, size in zip(axes or range(x.dim()), listed(fixed, shape), strict=True):
            more = size - x.shape[axis]
            begins[axis] = more // 2 if more > 0 else -(-more // 2)
            ends[axis] = more - begins[axis]
        return F.pad(x, torch_pads([*begins, *ends]))

    return run


@op("Col2Im", 18, host=(1, 2))
def columns_to_image(node: NodeView) -> Op:
    """x (N, C * block, L): the blocks of a window that slides over an image, summed to (N, C, *image)."""
    image, block = node.integers(1), node.integers(2)

    def run(x: Tensor, whole: Tensor | None, each: Tensor | None) -> Tensor:
        sizes, kernel = listed(image, whole), listed(block, each)
        axes = len(sizes)
        window = Window.of(node, axes)
        pads = window.pads or (0,) * (2 * axes)
        padded = [size + pads[axis] + pads[axes + axis] for axis, size in enumerate(sizes)]
        # (block, L): where in the padded image, flattened, each element of each block belongs.
        place = torch.zeros((1, 1), dtype=torch.int64, device=x.device)
        for size, k, stride, dilation in zip(padded, kernel, window.strides, window.dilations, strict=True):
            begins = torch.arange(0, size - dilation * (k - 1), stride, device=x.device)
            along = torch.arange(0, dilation * k, dilation, device=x.device).unsqueeze(1) + begins
            place = (place[:, None, :, None] * size + along[None, :, None, :]).reshape(len(place) * k, -1)
        parts = x.reshape(x.shape[0], -1, place.numel())
        total = x.new_zeros((*parts.shape[:2], torch.Size(padded).numel())).index_add(2, place.reshape(-1), parts)
        return F.pad(total.reshape(*total.shape[:2], *padded), [-pad for pad in torch_pads(pads)])

    return run
