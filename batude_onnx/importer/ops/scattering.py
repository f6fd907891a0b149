"""Picking by computed places, and writing to them: GatherND, the Scatter family, NonZero, Compress, Unique."""

from __future__ import annotations

import torch
from torch import Tensor

from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView

# ONNX's reductions -> torch's; writing without one is undefined where two updates meet.
_REDUCTIONS = {"none": None, "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _reduction(node: NodeView) -> str | None:
    reduction = node.attr_string("reduction", "none")
    if reduction not in _REDUCTIONS:
        raise node.refuse("reduction", reduction, f"use one of {', '.join(_REDUCTIONS)}")
    return _REDUCTIONS[reduction]


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """int64, negative ones counted from the end."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@op("GatherND", 11, 12, 13)
def gather_nd(node: NodeView) -> Op:
    """data (*B, *D), indices (*B, *I, k) -> (*B, *I, *D[k:]), B being the first `batch_dims` axes."""
    batch = node.attr_int("batch_dims", 0)
    if not batch:
        return lambda data, indices: data[tuple(indices.to(torch.int64).unbind(-1))]

    def run(data: Tensor, indices: Tensor) -> Tensor:
        places = indices.to(torch.int64).unbind(-1)
        axes = [torch.arange(size, device=data.device) for size in data.shape[:batch]]
        own = [axis.view([-1 if i == at else 1 for i in range(indices.dim() - 1)]) for at, axis in enumerate(axes)]
        return data[(*own, *places)]

    return run


@op("ScatterElements", 11, 13, 16, 18)
@op("Scatter", 9, 11)
def scatter_elements(node: NodeView) -> Op:
    """data with the elements at `indices` along one axis replaced by updates, or reduced with them."""
    axis, kind = node.attr_int("axis", 0), _reduction(node)

    def run(data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        place = _wrapped(indices, data.shape[axis])
        if kind is None:
            return data.scatter(axis, place, updates)
        return data.scatter_reduce(axis, place, updates, kind)

    return run


@op("ScatterND", 11, 13, 16, 18)
def scatter_nd(node: NodeView) -> Op:
    """data (*D), indices (*I, k), updates (*I, *D[k:]): slices of data replaced by updates, or reduced with them."""
    kind = _reduction(node)

    def run(data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        depth = indices.shape[-1]
        place = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=data.device)
        for axis, size in enumerate(data.shape[:depth]):
            place = place * size + _wrapped(indices[..., axis], size)
        # One row a slice.
        rows = data.reshape(data.shape[:depth].numel(), -1)
        place, new = place.reshape(-1), updates.reshape(place.numel(), -1)
        if kind is None:
            return rows.index_copy(0, place, new).reshape(data.shape)
        return rows.scatter_reduce(0, place.unsqueeze(1).expand_as(new), new, kind).reshape(data.shape)

    return run


@op("TensorScatter", 24)
def tensor_scatter(node: NodeView) -> Op:
    """A cache (N, ..., S, ...) with new entries written along `axis`, for each sample from its own place on (0 by default)."""
    axis, mode = node.attr_int("axis", -2), node.attr_string("mode", "linear")
    if mode not in ("linear", "circular"):
        raise node.refuse("mode", mode, "use linear or circular")

    def run(cache: Tensor, update: Tensor, begin: Tensor | None = None) -> Tensor:
        at = axis % cache.dim()
        step = torch.arange(update.shape[at], device=cache.device).view([-1 if i == at else 1 for i in range(cache.dim())])
        if begin is not None:
            step = step + begin.view(-1, *[1] * (cache.dim() - 1))
        return cache.scatter(at, (step % cache.shape[at]).expand_as(update), update)

    return run


@op("NonZero", 9, 13, flat=True)
def non_zero(node: NodeView) -> Op:
    """-> (rank, count), int64: the places of all elements that are not 0, in row-major order."""
    return lambda x: torch.nonzero(x).t()


@op("Compress", 9, 11, 28)
def compress(node: NodeView) -> Op:
    """The slices along `axis` (or the elements) for which the condition, which may be shorter, is true."""
    axis = node.attr_int("axis") if node.given("axis") else None

    def run(x: Tensor, condition: Tensor) -> Tensor:
        picked = torch.nonzero(condition).squeeze(1)
        return x.reshape(-1).index_select(0, picked) if axis is None else x.index_select(axis, picked)

    return run


@op("Unique", 11, 28)
def unique(node: NodeView) -> Op:
    """-> the distinct slices along `axis` (or elements), where each is first found, which one each is, and counts (int64)."""
    axis, ascending = node.attr_int("axis") if node.given("axis") else None, node.attr_int("sorted", 1) != 0

    def run(x: Tensor) -> tuple[Tensor, ...]:
        x, at = (x.reshape(-1), 0) if axis is None else (x, axis)
        found, which, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True, dim=at)
        places = torch.arange(x.shape[at], device=x.device)
        first = places.new_full((found.shape[at],), x.shape[at]).scatter_reduce(0, which, places, "amin")
        if not ascending:
            order = first.argsort()
            first, counts, which = first[order], counts[order], order.argsort()[which]
        # Picked from x, so that gradients find their way.
        return x.index_select(at, first), first, which, counts

    return run
