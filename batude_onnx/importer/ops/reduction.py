"""Reductions, arg-reductions, TopK, running totals and OneHot."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView, listed

Reduce = Callable[[Tensor, "tuple[int, ...]", bool], Tensor]


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _total(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _extreme(name: str) -> Reduce:
    """amax or amin; of no elements, the value that every other one exceeds, or falls below."""
    of_bools, of_numbers, sign = (torch.any, torch.amax, -1) if name == "amax" else (torch.all, torch.amin, 1)

    def run(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        if x.dtype is torch.bool:
            return of_bools(x, axes, keepdim=keep)
        if x.numel():
            return of_numbers(x, axes, keepdim=keep)
        limits = (-math.inf, math.inf) if x.is_floating_point() else (torch.iinfo(x.dtype).min, torch.iinfo(x.dtype).max)
        reduced = {axis % x.dim() for axis in axes}
        sizes = [1 if axis in reduced else size for axis, size in enumerate(x.shape) if keep or axis not in reduced]
        return x.new_full(sizes, limits[sign > 0])

    return run


_KINDS: dict[str, Reduce] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceSum": _total,
    "ReduceMax": _extreme("amax"),
    "ReduceMin": _extreme("amin"),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: _total(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: _total(x.square(), axes, keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: _total(x.square(), axes, keep),
    "ReduceLogSum": lambda x, axes, keep: _total(x, axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
}


def _register(name: str, reduce: Reduce) -> None:
    def convert(node: NodeView) -> Op:
        """Axes are an attribute at first, and an input from opset 18 on (ReduceSum: 13)."""
        keep, noop = node.attr_int("keepdims", 1) != 0, node.attr_int("noop_with_empty_axes", 0) != 0
        fixed = node.attr_ints("axes") if node.given("axes") else node.integers(1)
        known = fixed is not None or not node.has(1)

        def run(x: Tensor, given: Tensor | None = None) -> Tensor:
            axes = tuple(listed(fixed, given)) if given is not None or fixed else ()
            if not axes:
                if noop:
                    return reduce(x.unsqueeze(0), (0,), False)
                axes = tuple(range(x.dim()))
            return reduce(x, tuple(axis % x.dim() for axis in axes), keep)

        if known and fixed:
            axes = tuple(fixed)
            if name == "ReduceProd":
                return run
            return lambda x, *_: reduce(x, axes, keep)
        return run

    op(name, 1, 11, 12, 13, 18, 20, 28, host=(1,))(convert)


for _name, _reduce in _KINDS.items():
    _register(_name, _reduce)


def _arg(name: str, find: Callable[..., Tensor]) -> None:
    def convert(node: NodeView) -> Op:
        axis, keep = node.attr_int("axis", 0), node.attr_int("keepdims", 1) != 0
        if node.attr_int("select_last_index", 0):
            return lambda x: x.shape[axis] - 1 - find(x.flip(axis), axis, keepdim=keep)
        return lambda x: find(x, axis, keepdim=keep)

    op(name, 1, 11, 12, 13, flat=True)(convert)


_arg("ArgMax", torch.argmax)
_arg("ArgMin", torch.argmin)


@op("TopK", 1, 10, 11, 24, host=(1,))
def top_k(node: NodeView) -> Op:
    """-> values, indices (int64), sorted from the extreme on; of equals the first, which torch.topk does not promise."""
    axis, largest = node.attr_int("axis", -1), node.attr_int("largest", 1) != 0
    fixed = [node.attr_int("k")] if node.given("k") else node.integers(1)

    def run(x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
        values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
        (count,) = listed(fixed, k)
        return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)

    return run


@op("CumSum", 11, 14, host=(1,))
def cumulative_sum(node: NodeView) -> Op:
    return _running(node, torch.cumsum, 0)


@op("CumProd", 26, host=(1,))
def cumulative_product(node: NodeView) -> Op:
    return _running(node, torch.cumprod, 1)


def _running(node: NodeView, total: Callable[..., Tensor], neutral: int) -> Op:
    """Running totals along an axis, on request from the end, or without the element itself."""
    exclusive, backward = node.attr_int("exclusive", 0) != 0, node.attr_int("reverse", 0) != 0
    fixed = node.integers(1)

    def run(x: Tensor, axis: Tensor | None = None) -> Tensor:
        (at,) = listed(fixed, axis)
        y = x.flip(at) if backward else x
        if exclusive and y.shape[at]:
            y = torch.cat([torch.full_like(y.narrow(at, 0, 1), neutral), y.narrow(at, 0, y.shape[at] - 1)], at)
        y = total(y, at, dtype=x.dtype)
        return y.flip(at) if backward else y

    return run


@op("OneHot", 9, 11, 28, host=(1,))
def one_hot(node: NodeView) -> Op:
    """indices, depth, (off, on) -> a new axis of size `depth`; indices outside [-depth, depth) give all off."""
    axis, fixed = node.attr_int("axis", -1), node.integers(1)

    def run(indices: Tensor, depth: Tensor | None, values: Tensor) -> Tensor:
        size = int(listed(fixed, depth)[0])
        at = axis if axis >= 0 else indices.dim() + 1 + axis
        whole = indices.to(torch.int64)
        wrapped = torch.where(whole < 0, whole + size, whole).unsqueeze(at)
        places = torch.arange(size, device=indices.device).view([size if i == at else 1 for i in range(indices.dim() + 1)])
        return torch.where(wrapped == places, values[1], values[0])

    return run
