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
from batude_onnx.importer.view import NodeView, Refusal

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


@op("MaxPool", 1, 8, 10, 11, 12, 22)
def max_pool(node: NodeView) -> Op:
    """x (N, C, *in) -> (N, C, *out)."""
    if node.used(1):
        raise Refusal("its output Indices is used", "only the values are supported: replace MaxUnpool by Resize")
    kernel = _kernel(node)
    axes = len(kernel)
    window, ceil, run = Window.of(node, axes), node.attr_int("ceil_mode", 0) != 0, _MAX[axes]
    strides, dilations, pads = window.strides, window.dilations, window.pads
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

    def total(x: Tensor) -> Tensor:
        if not dilated:
            return run(x, kernel, strides)
        ones = x.new_ones((1, 1, *kernel))
        flat = x.reshape(-1, 1, *x.shape[2:])
        y = _CONV[axes](flat, ones, None, strides, 0, window.dilations)
        return y.reshape(*x.shape[:2], *y.shape[2:])

    def padded(x: Tensor) -> Tensor:
        sizes = x.shape[2:]
        ends = pads if pads is not None else same_pads(sizes, kernel, strides, window.dilations, window.auto_pad)
        exact = _exact(ends, sizes, kernel, window, ceil)
        ones = x.new_ones((1, 1, *sizes))
        counted = exact
        if include:
            ones = F.pad(ones, torch_pads(ends), value=1.0)
            counted = [0] * axes + [exact[axes + axis] - ends[axes + axis] for axis in range(axes)]
        weight = total(F.pad(ones, torch_pads(counted)))
        return total(F.pad(x, torch_pads(exact))) / weight

    return padded


@op("LpPool", 2, 11, 18, 22)
def lp_pool(node: NodeView) -> Op:
    """(sum over the window of |x|^p)^(1/p)."""
    kernel = _kernel(node)
    axes, p = len(kernel), node.attr_int("p", 2)
    window, ceil, run = Window.of(node, axes), node.attr_int("ceil_mode", 0) != 0, _AVERAGE[axes]
    if any(dilation != 1 for dilation in window.dilations):
        raise node.refuse("dilations", window.dilations, "use 1 on every axis")
    elements = 1
    for size in kernel:
        elements *= size

    def padded(x: Tensor) -> Tensor:
        sizes = x.shape[2:]
        ends = window.pads
        if ends is None:
            ends = same_pads(sizes, kernel, window.strides, window.dilations, window.auto_pad)
        powers = F.pad(x.abs().pow(p), torch_pads(_exact(ends, sizes, kernel, window, ceil)))
        return (run(powers, kernel, window.strides) * elements).pow(1 / p)

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
