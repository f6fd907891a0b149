"""What an input holds, as its type and shape, its name, and what the graph does with it show.

Ids stay below the size of the table that is read by them, a flag is the constant that it is compared with, pictures lie in the
range that the model's own normalisation expects, quantized ones in that of their scale, states of recurrent layers are small.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from batude_onnx.feeding.values import channel_axis
from batude_onnx.layers import constants
from batude_onnx.loading import InputSpec

Range = tuple[float, float]
Shape = tuple[int | None, ...]
# A node, and as which of its inputs a value goes in.
Reader = tuple[ir.Node, int]
Found = TypeVar("Found")

BYTES, UNIT, SIGNED = (0.0, 255.0), (0.0, 1.0), (-1.0, 1.0)
# A normalised picture, about: mean 0, deviation 1.
NORMALISED = (-2.0, 2.0)
SMALL = (-0.1, 0.1)
# Integers of which nothing is known are mostly indices or flags: small values are valid for nearly all of them.
FEW = (0.0, 3.0)
# An axis from this length up holds the samples of a sound.
LONG = 4000
# Nodes through which the first input goes on as it is, or in parts.
PASSED = {
    "Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Expand", "Tile",
    "Slice", "Split", "Concat", "Pad", "Resize", "Gather",
}  # fmt: skip
# Where indices go in, and where the table lies that they are read from.
TABLES = {("Gather", 1): 0, ("GatherElements", 1): 0, ("EmbedLayerNormalization", 0): 2, ("EmbedLayerNormalization", 1): 4}
RECURRENT = ("LSTM", "GRU", "RNN")
# A mean above this is one of bytes, not of numbers from 0 to 1; a divisor above the other, or its inverse, scales bytes.
MEAN_OF_BYTES, DIVISOR_OF_BYTES = 2.0, 16.0

PADDING, MASK, FACTOR = re.compile("pad"), re.compile("mask"), re.compile("scale_?factor")
LENGTH = re.compile(r"(^|[^a-z])(len|length|shape|size)s?($|[^a-z])")
STATE = re.compile(r"(?<!hidden_)states?$|cache|past|(^|_)[hc][n0]?\d*(_|$)")
SOUND = re.compile("audio|wav|signal|pcm|speech")


def range_of(value: ir.Value, spec: InputSpec, shapes: Mapping[str, Shape], specs: Mapping[str, InputSpec]) -> Range | None:
    """Lowest and highest value of an input; None for a float input of which nothing is known. `shapes`: of all inputs."""
    name = spec.name.lower()
    readers = list(_readers(value))
    tiny = prod(size or 1 for size in shapes[spec.name]) <= 2 and len(spec.shape) <= 2
    if spec.dtype.kind == "b":
        return (0.0, 0.0) if PADDING.search(name) else (1.0, 1.0) if MASK.search(name) else (0.0, 1.0)
    if MASK.search(name):
        return (1.0, 1.0)
    if tiny and (compared := _first(readers, _compared)) is not None:
        return compared, compared
    if tiny and (LENGTH.search(name) or any(_counts(*reader) for reader in readers)):
        size = float(_length(spec.name, shapes, specs))
        return size, size
    if spec.dtype.kind in "iu":
        return _of_integers(spec, readers)
    return _of_floats(spec, shapes[spec.name], readers)


def _of_integers(spec: InputSpec, readers: list[Reader]) -> Range:
    tables = [size for reader in readers if (size := _table(*reader))]
    if tables:
        return 0.0, float(min(tables) - 1)
    if spec.dtype.itemsize == 1 and len(spec.shape) >= 3:
        return float(np.iinfo(spec.dtype).min), float(np.iinfo(spec.dtype).max)
    return FEW


def _of_floats(spec: InputSpec, shape: Shape, readers: list[Reader]) -> Range | None:
    name = spec.name.lower()
    if any(node.op_type in RECURRENT and index in (5, 6) for node, index in readers) or STATE.search(name):
        return SMALL
    if (quantized := _first(readers, _quantized)) is not None:
        return quantized
    if channel_axis(spec) is not None:
        return _first(readers, _normalised) or NORMALISED
    if FACTOR.search(name):
        return (1.0, 1.0)
    waves = len(spec.shape) <= 3 and max((size for size in shape if size), default=0) >= LONG
    return SIGNED if waves or SOUND.search(name) else None


def _first(readers: list[Reader], look: Callable[[ir.Node, int], Found | None]) -> Found | None:
    return next((found for reader in readers if (found := look(*reader)) is not None), None)


def _readers(value: ir.Value) -> Iterator[Reader]:
    """Nodes that read a value, and as which input, also behind nodes that pass it on; the nearest first."""
    waiting, seen = [value], {id(value)}
    while waiting:
        for node, index in waiting.pop(0).uses():
            yield node, index
            passed = node.op_type in PASSED and (index == 0 or node.op_type == "Concat")
            waiting += [out for out in node.outputs if passed and id(out) not in seen]
            seen |= {id(out) for out in node.outputs}


def _constant(value: ir.Value | None) -> np.ndarray | None:
    root = constants.source(value)
    return None if root is None else constants.tensor(root).numpy().astype(np.float64)


def _other(node: ir.Node, index: int) -> np.ndarray | None:
    """The constant that the other input of a node of two holds; None where it is none, or empty."""
    held = _constant(node.inputs[1 - index]) if len(node.inputs) == 2 and index < 2 else None
    return held if held is not None and held.size and np.isfinite(held).all() else None


def _compared(node: ir.Node, index: int) -> float | None:
    held = _other(node, index) if node.op_type == "Equal" else None
    return None if held is None else float(held.flat[0])


def _counts(node: ir.Node, index: int) -> bool:
    return (node.op_type in RECURRENT and index == 4) or (node.op_type == "Range" and index == 1)


def _table(node: ir.Node, index: int) -> int | None:
    """How many different indices a node takes."""
    if node.op_type == "OneHot" and index == 0:
        depth = _constant(node.inputs[1])
        return None if depth is None or depth.size != 1 else int(depth.flat[0])
    place = TABLES.get((node.op_type, index))
    table = None if place is None or place >= len(node.inputs) else node.inputs[place]
    root = constants.source(table)
    shape = constants.tensor(root).shape if root is not None else None if table is None else table.shape
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    size = shape[axis]
    return size if isinstance(size, int) else None


def _quantized(node: ir.Node, index: int) -> Range | None:
    """What a scale and a zero point can show."""
    if node.op_type != "QuantizeLinear" or index != 0:
        return None
    scale = _constant(node.inputs[1])
    root = constants.source(node.inputs[2]) if len(node.inputs) > 2 else None
    kind = np.dtype(np.uint8) if root is None else constants.tensor(root).dtype.numpy()
    if scale is None or scale.size != 1 or kind.kind not in "iu":
        return None
    zero = 0.0 if root is None else float(constants.tensor(root).numpy().flat[0])
    limits = np.iinfo(kind)
    return (float(limits.min) - zero) * float(scale.flat[0]), (float(limits.max) - zero) * float(scale.flat[0])


def _normalised(node: ir.Node, index: int) -> Range | None:
    """The range of pictures that a model normalises itself by this node."""
    if node.op_type == "BatchNormalization" and index == 0:
        mean, variance = _constant(node.inputs[3]), _constant(node.inputs[4])
        if mean is None or variance is None or not mean.size:
            return None
        spread = 2 * np.sqrt(np.maximum(variance, 0))
        return float((mean - spread).min()), float((mean + spread).max())
    if node.op_type == "Cast":
        return BYTES if node.attributes["to"].as_int() == ir.DataType.UINT8 else None
    held = _other(node, index)
    size = 0.0 if held is None else float(np.abs(held).max())
    if not size:
        return None
    if node.op_type in ("Sub", "Add"):
        return BYTES if size > MEAN_OF_BYTES else UNIT
    if node.op_type == "Div":
        return BYTES if size > DIVISOR_OF_BYTES else UNIT
    if node.op_type == "Mul":
        return BYTES if size < 1 / DIVISOR_OF_BYTES else UNIT
    return None


def _length(name: str, shapes: Mapping[str, Shape], specs: Mapping[str, InputSpec]) -> int:
    """The size that a length counts: of the largest other input its open axis after the batch, else of a picture its height,
    of others the smallest, which is never too long."""
    others = {other: shape for other, shape in shapes.items() if other != name and len(shape) > 1}
    if not others:
        return 1
    largest = max(others, key=lambda other: prod(size or 1 for size in others[other]))
    sizes = [(axis, size) for axis, size in enumerate(others[largest]) if axis and size]
    opened = [size for axis, size in sizes if not isinstance(specs[largest].shape[axis], int)]
    if opened:
        return opened[0]
    inner = [size for axis, size in sizes if axis != channel_axis(specs[largest])]
    return min(inner, default=1)
