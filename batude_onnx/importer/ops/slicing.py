"""Concat, Split, Slice, Pad, Gather and their kin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from batude_onnx.importer.ops.padding import torch_pads
from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView, Refusal, listed


@op("Concat", 4, 11, 13, moves="all")
def concat(node: NodeView) -> Op:
    axis = node.attr_int("axis")
    return lambda *inputs: torch.cat(inputs, axis)


@op("Split", 2, 11, 13, 18, host=(1,))
def split(node: NodeView) -> Op:
    """Sizes from an attribute (up to opset 12), an input, or equal parts, of which the last may be smaller."""
    axis, parts = node.attr_int("axis", 0), node.attr_int("num_outputs", node.outputs)
    fixed = node.attr_ints("split") if node.given("split") else node.integers(1)

    def run(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        if fixed is None and sizes is None:
            each = -(-x.shape[axis] // parts)
            return torch.split(x, each, axis)
        return torch.split(x, listed(fixed, sizes), axis)

    return run


def _cut(x: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]) -> Tensor:
    """Python's slices clamp and count from the end just as ONNX's do; torch lacks the negative steps."""
    window: list[slice] = [slice(None)] * x.dim()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step > 0:
            window[axis] = slice(start, end, step)
            continue
        picked = range(*slice(start, end, step).indices(x.shape[axis]))
        x = x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64, device=x.device))
    return x[tuple(window)]


@op("Slice", 1)
def slice_attributes(node: NodeView) -> Op:
    starts, ends = node.attr_ints("starts"), node.attr_ints("ends")
    if starts is None or ends is None:
        raise Refusal("attribute starts or ends is missing", "correct the node")
    axes = node.attr_ints("axes") or list(range(len(starts)))
    return lambda x: _cut(x, starts, ends, axes, [1] * len(starts))


@op("Slice", 10, 11, 13, host=(1, 2, 3, 4), moves="first")
def slice_inputs(node: NodeView) -> Op:
    starts, ends, axes, steps = (node.integers(index) for index in (1, 2, 3, 4))
    rank = node.rank(0)
    whole = starts is not None and ends is not None and all(not node.has(i) or i in node.bound for i in (3, 4))
    if starts is not None and ends is not None and whole and rank is not None and min(steps or [1]) > 0:
        window = [slice(None)] * rank
        for start, end, axis, step in zip(starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True):
            window[axis] = slice(start, end, step)
        picked = tuple(window)
        return lambda x, *_: x[picked]

    def run(x: Tensor, *given: Tensor | None) -> Tensor:
        more = [*given, None, None][:4]
        begin, stop = listed(starts, more[0]), listed(ends, more[1])
        along = listed(axes, more[2]) if axes is not None or more[2] is not None else list(range(len(begin)))
        stride = listed(steps, more[3]) if steps is not None or more[3] is not None else [1] * len(begin)
        return _cut(x, begin, stop, along, stride)

    return run


def _pad(x: Tensor, pads: Sequence[int], mode: str, value: float) -> Tensor:
    """`pads` over all axes in ONNX's order; negative ones crop."""
    if mode == "constant":
        return F.pad(x, torch_pads(pads), value=value)
    crop = [min(pad, 0) for pad in pads]
    if any(crop):
        x = F.pad(x, torch_pads(crop))
    rank = len(pads) // 2
    for axis in range(rank):
        begin, end, size = max(pads[axis], 0), max(pads[rank + axis], 0), x.shape[axis]
        if begin == end == 0:
            continue
        place = torch.arange(-begin, size + end, device=x.device)
        if mode == "edge":
            place = place.clamp(0, size - 1)
        elif mode == "wrap":
            place = place.remainder(size)
        elif size == 1:
            place = torch.zeros_like(place)
        else:
            # A walk back and forth between the two ends, which are not repeated.
            place = size - 1 - (place.remainder(2 * size - 2) - (size - 1)).abs()
        x = x.index_select(axis, place)
    return x


@op("Pad", 2, 11, 13, 18, 19, 21, 23, 24, 25, host=(1, 2, 3))
def pad(node: NodeView) -> Op:
    """Pads and value are attributes at opset 2, then inputs; axes (opset 18) says which axes the pads are for."""
    mode = node.attr_string("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise node.refuse("mode", mode, "use constant, reflect, edge or wrap")
    fixed = node.attr_ints("pads") if node.given("pads") else node.integers(1)
    number = node.attr_float("value") if node.given("value") else node.scalar(2)
    axes = node.integers(3)
    rank = node.rank(0)

    def spread(pads: list[int], along: Sequence[int] | None, dims: int) -> list[int]:
        if along is None:
            return pads
        full = [0] * (2 * dims)
        for index, axis in enumerate(along):
            full[axis % dims] = pads[index]
            full[dims + axis % dims] = pads[len(along) + index]
        return full

    known = fixed is not None and (axes is None or rank is not None) and (not node.has(3) or axes is not None)
    if fixed is not None and known and mode == "constant" and (number is not None or not node.has(2)):
        amounts, filling = torch_pads(spread(fixed, axes, rank or 0)), number or 0
        return lambda x, *_: F.pad(x, amounts, value=filling)

    def run(x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, along: Tensor | None = None) -> Tensor:
        which = listed(axes, along) if axes is not None or along is not None else None
        filled = number if number is not None else 0 if value is None else value.item()
        return _pad(x, spread(listed(fixed, pads), which, x.dim()), mode, filled)

    return run


@op("Gather", 1, 11, 13, moves="first")
def gather(node: NodeView) -> Op:
    """data with its axis replaced by the axes of indices."""
    axis = node.attr_int("axis", 0)
    known = node.peek(1)
    if known is not None and known.ndim == 0:
        index = node.scalar(1)
        return lambda data, _: data.select(axis, index)
    positive = known is not None and known.size > 0 and int(known.min()) >= 0

    def run(data: Tensor, indices: Tensor) -> Tensor:
        at = axis % data.dim()
        flat = indices.reshape(-1)
        if not positive:
            flat = torch.where(flat < 0, flat + data.shape[at], flat)
        picked = data.index_select(at, flat)
        return picked if indices.dim() == 1 else picked.reshape(*data.shape[:at], *indices.shape, *data.shape[at + 1 :])

    return run


@op("GatherElements", 11, 13)
def gather_elements(node: NodeView) -> Op:
    axis = node.attr_int("axis", 0)

    def run(data: Tensor, indices: Tensor) -> Tensor:
        whole = indices.to(torch.int64)
        return data.gather(axis, torch.where(whole < 0, whole + data.shape[axis], whole))

    return run
