"""Resize and Upsample.

Each output position o on an axis is mapped to a position in the input (ONNX's coordinate modes), and takes the nearest
input element or a weighted sum of its neighbours. The axes are independent, so every axis is one matrix (out, in). torch's
own interpolation does the same for the common modes and is used there because it is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView, Refusal

Positions = npt.NDArray[np.floating]
# Begin and end of the region that is resized, as shares of the axis.
Part = tuple[float, float]
WHOLE: Part = (0.0, 1.0)
_CROP = "tf_crop_and_resize"


def _cropped(o: Positions, scale: float, out: int, size: int, part: Part) -> Positions:
    """Evenly from the region's begin to its end; only here do the region and the extrapolation value count."""
    begin, end = part[0] * (size - 1), part[1] * (size - 1)
    return begin + o * ((end - begin) / (out - 1)) if out > 1 else o * 0 + (begin + end) / 2


# (output index, scale, output size, input size, region) -> position in the input.
_COORDINATES: dict[str, Callable[[Positions, float, int, int, Part], Positions]] = {
    "half_pixel": lambda o, scale, out, size, _: (o + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda o, scale, out, size, _: (o + 0.5) / scale - 0.5 if out > 1 else o * 0,
    "align_corners": lambda o, scale, out, size, _: o * (size - 1) / (out - 1) if out > 1 else o * 0,
    "asymmetric": lambda o, scale, out, size, _: o / scale,
    "tf_half_pixel_for_nn": lambda o, scale, out, size, _: (o + 0.5) / scale,
    # Keeps the centres together where the output size had to be rounded.
    "half_pixel_symmetric": lambda o, scale, out, size, _: size / 2 * (1 - out / (scale * size)) + (o + 0.5) / scale - 0.5,
    _CROP: _cropped,
}
_NEAREST: dict[str, Callable[[Positions], Positions]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
_TORCH_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Method:
    """How values are found; the names are ONNX's attributes."""

    mode: str
    coordinates: str
    nearest: str = "floor"
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    extrapolation: float = 0.0


def _kernel(method: Method, distance: Positions) -> Positions:
    """The weight of a neighbour at this distance: a triangle, or Keys' cubic."""
    x = np.abs(distance)
    if method.mode == "linear":
        return np.maximum(0.0, 1.0 - x)
    a = method.cubic
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _places(method: Method, size: int, out: int, scale: float, part: Part) -> Positions:
    # In single precision, as in onnxruntime: "nearest" decides ties by the last bit.
    return _COORDINATES[method.coordinates](np.arange(out, dtype=np.float32), scale, out, size, part)


@lru_cache(maxsize=256)
def _matrix(method: Method, size: int, out: int, scale: float, part: Part) -> Positions:
    """(out, in): the weights of the input elements for every output element."""
    place = _places(method, size, out, scale, part)
    weights = np.zeros((out, size))
    if method.mode == "nearest":
        weights[np.arange(out), np.clip(_NEAREST[method.nearest](place), 0, size - 1).astype(int)] = 1
        return weights
    # Antialiasing widens the kernel where the image shrinks.
    shrink = min(scale, 1.0) if method.antialias else 1.0
    reach = int(np.ceil((1 if method.mode == "linear" else 2) / shrink)) + 1
    offsets = np.arange(-reach, reach + 1)
    neighbours = np.floor(place)[:, None] + offsets
    values = _kernel(method, (place[:, None] - neighbours) * shrink)
    if method.exclude_outside:
        values = np.where((neighbours >= 0) & (neighbours < size), values, 0.0)
    if method.exclude_outside or method.antialias:
        values = values / values.sum(1, keepdims=True)
    rows = np.broadcast_to(np.arange(out)[:, None], values.shape)
    np.add.at(weights, (rows, np.clip(neighbours, 0, size - 1).astype(int)), values)
    return weights


def _resize_axis(x: Tensor, axis: int, method: Method, out: int, scale: float, part: Part) -> Tensor:
    weights = _matrix(method, x.shape[axis], out, scale, part)
    if method.mode == "nearest":
        return x.index_select(axis, torch.from_numpy(weights.argmax(1)).to(x.device))
    matrix = torch.from_numpy(weights).to(device=x.device, dtype=x.dtype)
    return torch.matmul(x.movedim(axis, -1), matrix.t()).movedim(-1, axis)


def _extrapolated(y: Tensor, method: Method, sizes: Sequence[int], scales: Sequence[float], parts: Sequence[Part]) -> Tensor:
    """y with the extrapolation value wherever a position lies outside of an input of these sizes."""
    for axis, (size, scale, part) in enumerate(zip(sizes, scales, parts, strict=True)):
        place = _places(method, size, y.shape[axis], scale, part)
        outside = torch.from_numpy((place < 0) | (place > size - 1)).to(y.device)
        y = torch.where(outside.view([-1 if i == axis else 1 for i in range(y.dim())]), method.extrapolation, y)
    return y


def interpolate(
    x: Tensor, method: Method, outs: Sequence[int], scales: Sequence[float], parts: Sequence[Part] | None = None
) -> Tensor:
    """`x` brought to the sizes `outs`; `scales` and the regions `parts` are what the coordinates are computed with."""
    if parts is not None:
        sizes = x.shape
        for axis, part in enumerate(parts):
            if outs[axis] != sizes[axis] or part != WHOLE:
                x = _resize_axis(x, axis, method, outs[axis], scales[axis], part)
        return _extrapolated(x, method, sizes, scales, parts)
    axes = [axis for axis in range(x.dim()) if outs[axis] != x.shape[axis] or scales[axis] != 1]
    if not axes:
        return x
    whole = all(abs(scales[axis] * x.shape[axis] - outs[axis]) < 1e-6 for axis in axes)
    spatial = x.dim() - 2
    if min(axes) >= 2 and whole and spatial in _TORCH_LINEAR and x.is_floating_point() and not method.antialias:
        size = tuple(outs[2:])
        if method.mode == "nearest" and method.coordinates == "asymmetric" and method.nearest == "floor":
            return F.interpolate(x, size, mode="nearest")
        many = method.coordinates == "half_pixel" or all(out > 1 for out in size)
        if method.mode == "linear" and method.coordinates in ("half_pixel", "pytorch_half_pixel") and many:
            return F.interpolate(x, size, mode=_TORCH_LINEAR[spatial], align_corners=False)
        if method.mode == "linear" and method.coordinates == "align_corners" and many:
            return F.interpolate(x, size, mode=_TORCH_LINEAR[spatial], align_corners=True)
    for axis in axes:
        x = _resize_axis(x, axis, method, outs[axis], scales[axis], WHOLE)
    return x


def _floats(given: Tensor | None) -> list[float] | None:
    """A vector of scales or sizes from CPU memory; absent and empty are the same."""
    return [float(value) for value in given.tolist()] or None if given is not None else None


def _method(node: NodeView) -> Method:
    mode = node.attr_string("mode", "nearest")
    coordinates = node.attr_string("coordinate_transformation_mode", "half_pixel")
    nearest = node.attr_string("nearest_mode", "round_prefer_floor")
    if mode not in ("nearest", "linear", "cubic"):
        raise node.refuse("mode", mode, "use nearest, linear or cubic")
    if coordinates not in _COORDINATES:
        raise node.refuse("coordinate_transformation_mode", coordinates, f"use one of {', '.join(_COORDINATES)}")
    if nearest not in _NEAREST:
        raise node.refuse("nearest_mode", nearest, f"use one of {', '.join(_NEAREST)}")
    exclude, antialias = node.attr_int("exclude_outside", 0) != 0, node.attr_int("antialias", 0) != 0
    cubic, extrapolation = node.attr_float("cubic_coeff_a", -0.75), node.attr_float("extrapolation_value", 0.0)
    return Method(mode, coordinates, nearest, cubic, exclude, antialias, extrapolation)


def _follow(node: ir.Node, sizes: list[int], batch: int) -> list[int] | None:
    """The sizes of the spatial axes alone; `node` is told that it is given these."""
    if "axes" in node.attributes or len(sizes) < 3 or sizes[0] != batch:
        return None
    node.attributes.add(ir.AttrInt64s("axes", list(range(2, len(sizes)))))
    return sizes[2:]


@op("Resize", 11, 13, 18, 19, host=(1, 2, 3), sizes=(3, _follow))
def resize(node: NodeView) -> Op:
    """x, roi, scales or sizes, over all axes or those that `axes` names (opset 18). roi: all begins, then all ends."""
    method = _method(node)
    cropped = method.coordinates == _CROP
    named = node.attr_ints("axes")
    policy = node.attr_string("keep_aspect_ratio_policy", "stretch")
    if policy not in ("stretch", "not_larger", "not_smaller"):
        raise node.refuse("keep_aspect_ratio_policy", policy, "use stretch, not_larger or not_smaller")
    fixed = [None if (array := node.constant(index)) is None else array.astype(float).tolist() or None for index in (1, 2, 3)]
    if not node.has(2) and not node.has(3):
        raise Refusal("neither scales nor sizes is given", "give one of them")

    def run(x: Tensor, *given: Tensor | None) -> Tensor:
        later = [*given, None, None, None][:3]
        scales, sizes = (fixed[index] or _floats(later[index]) for index in (1, 2))
        axes = [axis % x.dim() for axis in named] if named is not None else list(range(x.dim()))
        outs, ratios = list(x.shape), [1.0] * x.dim()
        parts = [WHOLE] * x.dim()
        if cropped:
            bounds = fixed[0] or _floats(later[0]) or []
            for axis, begin, end in zip(axes, bounds, bounds[len(axes) :], strict=False):
                parts[axis] = (begin, end)
        if sizes is not None:
            ratio = [size / x.shape[axis] for axis, size in zip(axes, sizes, strict=True)]
            if policy != "stretch":
                best = min(ratio) if policy == "not_larger" else max(ratio)
                ratio = [best] * len(axes)
                sizes = [np.floor(best * x.shape[axis] + 0.5) for axis in axes]
        else:
            assert scales is not None
            ratio = scales
            # onnxruntime leaves the region out of it; ONNX's text multiplies by the region's share of the axis.
            sizes = [np.floor(x.shape[axis] * scale) for axis, scale in zip(axes, scales, strict=True)]
        for axis, size, scale in zip(axes, sizes, ratio, strict=True):
            outs[axis], ratios[axis] = int(size), scale
        return interpolate(x, method, outs, ratios, parts if cropped else None)

    return run


@op("Resize", 10, host=(1,))
@op("Upsample", 7, 9, host=(1,))
def upsample(node: NodeView) -> Op:
    """x, scales (an attribute in Upsample-7): asymmetric coordinates, rounded down."""
    mode = node.attr_string("mode", "nearest")
    if mode not in ("nearest", "linear"):
        raise node.refuse("mode", mode, "use nearest or linear")
    method = Method(mode, "asymmetric")
    constant = node.constant(1)
    fixed = list(node.attr_floats("scales") or []) if constant is None else constant.astype(float).tolist()

    def run(x: Tensor, scales: Tensor | None = None) -> Tensor:
        ratios = fixed or _floats(scales)
        assert ratios is not None
        return interpolate(x, method, [int(size * scale) for size, scale in zip(x.shape, ratios, strict=True)], ratios)

    return run
