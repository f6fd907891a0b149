"""Max and average pools, local and global.

ONNX's output size is floor or ceil((in + pads - (dilation (kernel - 1) + 1)) / stride) + 1; with ceil, a last window that
would begin in the end padding is left out. torch agrees for symmetric pads of at most half a kernel; all other cases are
padded by hand to exactly the size that gives this count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from batude_onnx.importer.ops.padding import Window, same_pads, torch_pads
from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView, listed

_MAX: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _kernel(node: NodeView) -> list[int]:
    kernel = node.attr_ints("kernel_shape")
    if kernel is None or len(kernel) not in _MAX:
        raise node.refuse("kernel_shape", kernel, "give 1 to 3 sizes")
    return kernel


def _exact(pads: Sequence[int], sizes: Sequence[int], kernel: Sequence[int], window: Window, ceil: bool) -> list[int]:
    """`pads` with the ends changed so that windows laid without any rounding give ONNX's number of outputs."""
    axes = len(kernel)
    exact = list(pads)
    for axis in range(axes):
        begin, end, stride = pads[axis], pads[axes + axis], window.strides[axis]
        reach = window.dilations[axis] * (kernel[axis] - 1) + 1
        free = sizes[axis] + begin + end - reach
        count = (-(-free // stride) if ceil else free // stride) + 1
        if ceil and (count - 1) * stride >= sizes[axis] + begin:
            count -= 1
        exact[axes + axis] = (count - 1) * stride + reach - sizes[axis] - begin
    return exact


def _fits(pads: Sequence[int] | None, kernel: Sequence[int]) -> bool:
    """Whether torch's own padding can express `pads`."""
    if pads is None:
        return False
    axes = len(kernel)
    return list(pads[:axes]) == list(pads[axes:]) and all(2 * pad <= k for pad, k in zip(pads, kernel, strict=False))


def _sums(x: Tensor, kernel: Sequence[int], window: Window) -> Tensor:
    """The sum over each window that fits into x."""
    if all(dilation == 1 for dilation in window.dilations):
        return _AVERAGE[len(kernel)](x, kernel, window.strides) * torch.Size(kernel).numel()
    ones = x.new_ones((1, 1, *kernel))
    y = _CONV[len(kernel)](x.reshape(-1, 1, *x.shape[2:]), ones, None, window.strides, 0, window.dilations)
    return y.reshape(*x.shape[:2], *y.shape[2:])


@op("MaxPool", 1, 8, 10, 11, 12, 22)
def max_pool(node: NodeView) -> Op:
    """x (N, C, *in) -> (N, C, *out)."""
    kernel = _kernel(node)
    axes = len(kernel)
    window, ceil, run = Window.of(node, axes), node.attr_int("ceil_mode", 0) != 0, _MAX[axes]
    strides, dilations, pads = window.strides, window.dilations, window.pads
    if node.used(1):
        return _with_indices(kernel, window, ceil, node.attr_int("storage_order", 0) != 0)
    if pads is not None and _fits(pads, kernel):
        symmetric = pads[:axes]
        return lambda x: run(x, kernel, strides, symmetric, dilations, ceil)

    def padded(x: Tensor) -> Tensor:
        sizes = x.shape[2:]
        ends = pads if pads is not None else same_pads(sizes, kernel, strides, dilations, window.auto_pad)
        least = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
        x = F.pad(x, torch_pads(_exact(ends, sizes, kernel, window, ceil)), value=least)
        return run(x, kernel, strides, 0, dilations)

    return padded


def _with_indices(kernel: list[int], window: Window, ceil: bool, by_column: bool) -> Op:
    """-> values, and where each was found (int64): its place in the flattened (N, C, *in), which knows of no padding.

    `by_column`: the spatial axes are counted with the first one fastest.
    """
    axes = len(kernel)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        sizes = x.shape[2:]
        ends = window.pads
        if ends is None:
            ends = same_pads(sizes, kernel, window.strides, window.dilations, window.auto_pad)
        exact = _exact(ends, sizes, kernel, window, ceil)
        wide = F.pad(x if x.is_floating_point() else x.double(), torch_pads(exact), value=float("-inf"))
        values, found = _MAX[axes](wide, kernel, window.strides, 0, window.dilations, return_indices=True)
        coordinates: list[Tensor] = []
        for axis in reversed(range(axes)):
            coordinates.insert(0, found % wide.shape[2 + axis] - exact[axis])
            found = found // wide.shape[2 + axis]
        place, step = torch.zeros_like(found), 1
        for axis in range(axes) if by_column else reversed(range(axes)):
            place = place + coordinates[axis] * step
            step *= sizes[axis]
        image = torch.arange(x.shape[0] * x.shape[1], device=x.device).view(*x.shape[:2], *[1] * axes)
        return values.to(x.dtype), place + image * sizes.numel()

    return run


@op("MaxUnpool", 9, 11, 22, host=(2,))
def max_unpool(node: NodeView) -> Op:
    """x and places (N, C, *in), as the pool gives them -> (N, C, *out), 0 where nothing was picked.

    The size that the places were counted in is that of the pool's input, stride (in - 1) + kernel - pads; a larger output
    asked for is filled at the ends.
    """
    kernel = _kernel(node)
    axes = len(kernel)
    window, wanted = Window.of(node, axes), node.integers(2)
    pads = window.pads
    if pads is None:
        raise node.refuse("auto_pad", window.auto_pad, "give pads")

    def run(x: Tensor, places: Tensor, shape: Tensor | None = None) -> Tensor:
        own = [
            window.strides[axis] * (x.shape[2 + axis] - 1) + kernel[axis] - pads[axis] - pads[axes + axis] for axis in range(axes)
        ]
        y = x.new_zeros(torch.Size((*x.shape[:2], *own)).numel()).scatter(0, places.reshape(-1), x.reshape(-1))
        y = y.view(*x.shape[:2], *own)
        if wanted is None and shape is None:
            return y
        more = [size - mine for size, mine in zip(listed(wanted, shape)[2:], own, strict=True)]
        return F.pad(y, torch_pads([0] * axes + more))

    return run


@op("AveragePool", 7, 10, 11, 19, 22)
def average_pool(node: NodeView) -> Op:
    """x (N, C, *in) -> (N, C, *out). Padding counts only where count_include_pad is set, what lies behind it never does."""
    kernel = _kernel(node)
    axes = len(kernel)
    window, ceil, run = Window.of(node, axes), node.attr_int("ceil_mode", 0) != 0, _AVERAGE[axes]
    include = node.attr_int("count_include_pad", 0) != 0
    strides, pads = window.strides, window.pads
    dilated = any(dilation != 1 for dilation in window.dilations)
    if pads is not None and _fits(pads, kernel) and not dilated:
        symmetric = pads[:axes]
        return lambda x: run(x, kernel, strides, symmetric, ceil, include)

    def padded(x: Tensor) -> Tensor:
        sizes = x.shape[2:]
        ends = pads if pads is not None else same_pads(sizes, kernel, strides, window.dilations, window.auto_pad)
        exact = _exact(ends, sizes, kernel, window, ceil)
        ones = x.new_ones((1, 1, *sizes))
        counted = exact
        if include:
            ones = F.pad(ones, torch_pads(ends), value=1.0)
            counted = [0] * axes + [exact[axes + axis] - ends[axes + axis] for axis in range(axes)]
        weight = _sums(F.pad(ones, torch_pads(counted)), kernel, window)
        return _sums(F.pad(x, torch_pads(exact)), kernel, window) / weight

    return padded


@op("LpPool", 2, 11, 18, 22)
def lp_pool(node: NodeView) -> Op:
    """(sum over the window of |x|^p)^(1/p)."""
    kernel = _kernel(node)
    axes, p = len(kernel), node.attr_int("p", 2)
    window, ceil = Window.of(node, axes), node.attr_int("ceil_mode", 0) != 0

    def padded(x: Tensor) -> Tensor:
        sizes = x.shape[2:]
        ends = window.pads
        if ends is None:
            ends = same_pads(sizes, kernel, window.strides, window.dilations, window.auto_pad)
        powers = F.pad(x.abs().pow(p), torch_pads(_exact(ends, sizes, kernel, window, ceil)))
        return _sums(powers, kernel, window).pow(1 / p)

    return padded


@op("GlobalAveragePool", 1, 22)
def global_average_pool(node: NodeView) -> Op:
    """(N, C, *in) -> (N, C, 1, ...)."""
    return lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True)


@op("GlobalMaxPool", 1, 22)
def global_max_pool(node: NodeView) -> Op:
    """(N, C, *in) -> (N, C, 1, ...)."""
    return lambda x: x.amax(tuple(range(2, x.dim())), keepdim=True)


@op("GlobalLpPool", 2, 22)
def global_lp_pool(node: NodeView) -> Op:
    """(N, C, *in) -> (N, C, 1, ...)."""
    p = node.attr_int("p", 2)
    return lambda x: x.abs().pow(p).sum(tuple(range(2, x.dim())), keepdim=True).pow(1 / p)
