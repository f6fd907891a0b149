"""GridSample, AffineGrid, and the convolution that samples where its offsets say."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from batude_onnx.importer.ops.padding import Window
from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView, listed

# The names up to opset 19, and those from 20 on.
_MODES = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic"}
_PADDINGS = ("zeros", "border", "reflection")


@op("GridSample", 16, 20, 22)
def grid_sample(node: NodeView) -> Op:
    """x (N, C, *in), grid (N, *out, axes) of places in [-1, 1], last axis first -> (N, C, *out)."""
    mode, padding = node.attr_string("mode"), node.attr_string("padding_mode", "zeros")
    aligned = node.attr_int("align_corners", 0) != 0
    if mode not in _MODES:
        raise node.refuse("mode", mode, f"use one of {', '.join(_MODES)}")
    if padding not in _PADDINGS:
        raise node.refuse("padding_mode", padding, f"use one of {', '.join(_PADDINGS)}")
    rank, way = node.rank(0), _MODES[mode]
    if rank is not None and rank not in (4, 5):
        raise node.refuse("number of spatial axes", rank - 2, "use 2 or 3")
    if rank == 5 and way == "bicubic":
        raise node.refuse("mode", mode, "use linear or nearest over 3 spatial axes")
    return lambda x, grid: F.grid_sample(x, grid.to(x.dtype), way, padding, aligned)


@op("AffineGrid", 20, host=(1,))
def affine_grid(node: NodeView) -> Op:
    """theta (N, 2, 3) or (N, 3, 4), size (N, C, *out) -> (N, *out, 2 or 3)."""
    aligned, fixed = node.attr_int("align_corners", 0) != 0, node.integers(1)

    def run(theta: Tensor, size: Tensor | None) -> Tensor:
        sizes = listed(fixed, size)
        if not aligned or 1 not in sizes[2:]:
            return F.affine_grid(theta, sizes, align_corners=aligned)
        # torch puts the only element of an axis in the middle, onnxruntime at the far corner.
        axes = [torch.linspace(-1 if count > 1 else 1, 1, count).to(theta) for count in sizes[2:]]
        grid = torch.stack([*torch.meshgrid(*axes, indexing="ij")][::-1], -1).flatten(0, -2)
        placed = grid @ theta[..., :-1].mT + theta[..., -1].unsqueeze(1)
        return placed.reshape(len(theta), *sizes[2:], -1)

    return run


@op("DeformConv", 19, 22, learned=(1, 3))
def deformable_convolution(node: NodeView) -> Op:
    """x (N, C, H, W), w (S, C/groups, kh, kw), offset (N, 2 g kh kw, oh, ow), b (S,), mask (N, g kh kw, oh, ow).

    Each of a window's places is moved by its offset (y, x), which a g-th of the channels shares, and read there by linear
    interpolation, with zeros outside (https://arxiv.org/abs/1703.06211; the mask: https://arxiv.org/abs/1811.11168).
    """
    for index in (0, 1):
        rank = node.rank(index)
        if rank is not None and rank != 4:
            raise node.refuse("number of spatial axes", rank - 2, "use 2")
    window, groups, shared = Window.of(node, 2), node.attr_int("group", 1), node.attr_int("offset_group", 1)
    pads = window.pads
    assert pads is not None, "the op has no auto_pad"

    def run(x: Tensor, w: Tensor, offset: Tensor, b: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        n, c, *sizes = x.shape
        kernel, out = w.shape[2:], offset.shape[2:]
        points = kernel.numel()
        moved = offset.view(n * shared, points, 2, *out)
        axes = []
        for axis, (size, other) in enumerate(zip(sizes, (1, 0), strict=True)):
            begin = torch.arange(out[axis], device=x.device) * window.strides[axis] - pads[axis]
            within = torch.arange(kernel[axis], device=x.device) * window.dilations[axis]
            # (kh kw, oh, ow), constant along the other axis of both the window and the output.
            place = within.view([-1 if i == axis else 1 for i in range(2)] + [1, 1]) + begin.unsqueeze(other)
            place = place.expand(*kernel, *out).reshape(points, *out)
            # To [-1, 1] between the outer edges of the first and the last element, which an axis of one has, too.
            axes.append((2 * (place + moved[:, :, axis]) + 1) / size - 1)
        grid = torch.stack(axes[::-1], -1).view(n * shared, points * out[0], out[1], 2)
        read = F.grid_sample(x.reshape(n * shared, c // shared, *sizes), grid, "bilinear", "zeros", False)
        columns = read.view(n, shared, c // shared, points, *out)
        if mask is not None:
            columns = columns * mask.view(n, shared, 1, points, *out)
        columns = columns.reshape(n, groups, c // groups * points, out.numel())
        y = (w.reshape(groups, w.shape[0] // groups, -1) @ columns).view(n, w.shape[0], *out)
        return y if b is None else y + b.view(-1, 1, 1)

    return run
