"""`NAME=SHAPE:LOW..HIGH` and `NAME=SIZE`, as the command line gives them."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

from batude_onnx.records import Given

FORM = "NAME=SHAPE, NAME=SHAPE:LOW..HIGH or NAME=:LOW..HIGH, such as image=1,3,640,640:0..255"


def read_inputs(texts: Iterable[str]) -> dict[str, Given]:
    """Shapes and ranges by input name; the whole of a shape is given, and one number in the place of a range is that number.

    Raises ValueError, one line, for the first text that is not understood.
    """
    found: dict[str, Given] = {}
    for text in texts:
        # From the right, as names of TensorFlow's tensors hold colons.
        name, _, said = text.rpartition("=")
        shape, colon, span = said.partition(":")
        if not name or not (shape or span) or (colon and not span):
            raise ValueError(f"{text!r} is not {FORM}")
        if name in found:
            raise ValueError(f"{text!r}: input {name!r} is given twice; give shape and range together, as {FORM}")
        low, high = _range(text, span) if span else (None, None)
        found[name] = Given(_shape(text, shape) if shape else None, low, high)
    return found


def read_dims(texts: Iterable[str]) -> dict[str, int]:
    """Sizes by the name of a dimension. Raises ValueError, one line, for the first text that is not understood."""
    found: dict[str, int] = {}
    for text in texts:
        name, _, size = text.rpartition("=")
        if not name or not size.strip().isdecimal() or int(size) < 1:
            raise ValueError(f"{text!r} is not NAME=SIZE such as batch=1, with a size from 1 up")
        if found.setdefault(name, int(size)) != int(size):
            raise ValueError(f"{text!r}: dimension {name!r} is {found[name]} already")
    return found


def _shape(text: str, sizes: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in sizes.split(","))
    except ValueError as error:
        raise ValueError(f"{text!r}: {sizes!r} is not a list of sizes such as 1,3,224,224") from error
    if min(shape) < 1:
        raise ValueError(f"{text!r}: size {min(shape)} is not possible; sizes are from 1 up")
    return shape


def _range(text: str, span: str) -> tuple[float, float]:
    low, dots, high = span.partition("..")
    try:
        ends = float(low), float(high if dots else low)
    except ValueError as error:
        raise ValueError(f"{text!r}: {span!r} is not a range such as 0..255 or -1..1") from error
    if not all(map(isfinite, ends)) or ends[0] > ends[1]:
        raise ValueError(f"{text!r}: a range goes from a lower to a higher number, both finite, and {span!r} does not")
    return ends
