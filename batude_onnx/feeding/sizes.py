"""Which sizes open dimensions take: those that are asked for, the batch, and for the others usual ones that are tried."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product

import numpy as np

from batude_onnx.errors import ModelError
from batude_onnx.feeding.values import channel_axis
from batude_onnx.loading import InputSpec
from batude_onnx.records import Given, Wishes

Shape = tuple[int | None, ...]

# Tried in this order.
PICTURE = (224, 256, 320, 640, 512, 416, 64, 32)
SIGNAL = (16000, 512, 576, 1024, 4096, 256)
SEQUENCE = (64, 128, 100, 16, 256, 32, 512)
ATTEMPTS = 24
# What ONNX can count is more, what can be run is less.
LARGEST = 2**31 - 1
BATCH = re.compile(r"n|b|bs|.*batch.*", re.IGNORECASE)


def require_fit(specs: Sequence[InputSpec], wishes: Wishes) -> None:
    """Raises ModelError where `wishes` name no input or no dimension, or ask for what an input cannot hold."""
    by_name = {spec.name: spec for spec in specs}
    for name, given in wishes.inputs.items():
        if name not in by_name:
            raise ModelError(f"a shape or range was given for {name!r}, which is no input; the inputs are {', '.join(by_name)}")
        _require_shape(by_name[name], given.shape, wishes.dims)
        _require_range(by_name[name], given)
    names = dict.fromkeys(size for spec in specs for size in spec.shape if isinstance(size, str))
    for name in wishes.dims:
        if name not in names:
            there = f"there are {', '.join(names)}" if names else "no dimension of the inputs has a name; give --input NAME=SHAPE"
            raise ModelError(f"no input has a dimension {name!r}; {there}")
        if wishes.dims[name] > LARGEST:
            raise ModelError(f"dimension {name}={wishes.dims[name]} is too large; give a size up to {LARGEST:,}")


def _require_shape(spec: InputSpec, shape: Shape | None, dims: Mapping[str, int]) -> None:
    if shape is None:
        return
    fits = len(shape) == len(spec.shape) and all(
        size is None or size == wanted or not isinstance(wanted, int) for size, wanted in zip(shape, spec.shape, strict=True)
    )
    if fits and max((size for size in shape if size is not None), default=1) > LARGEST:
        raise ModelError(f"shape {shape} of input {spec} is too large; give sizes up to {LARGEST:,}")
    if not fits or min((size for size in shape if size is not None), default=1) < 1:
        raise ModelError(f"shape {shape} does not fit input {spec}; only sizes that are not numbers can be chosen, from 1 up")
    for size, wanted in zip(shape, spec.shape, strict=True):
        if size is not None and isinstance(wanted, str) and dims.get(wanted, size) != size:
            raise ModelError(f"shape {shape} of input {spec} and dimension {wanted}={dims[wanted]} contradict each other")


def _require_range(spec: InputSpec, given: Given) -> None:
    if given.low is None or given.high is None or spec.dtype.kind == "V":
        return
    if spec.dtype.kind == "f":
        most = float(np.finfo(spec.dtype).max)
        if max(-given.low, given.high) > most:
            raise ModelError(f"range {given.low:g}..{given.high:g} does not fit input {spec}: it takes numbers up to {most:g}")
        return
    ends = (0, 1) if spec.dtype.kind == "b" else (np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max)
    whole = given.low == int(given.low) and given.high == int(given.high)
    if not whole or given.low < ends[0] or given.high > ends[1]:
        raise ModelError(
            f"range {given.low:g}..{given.high:g} does not fit input {spec}: it takes whole numbers from {ends[0]} to {ends[1]}"
        )


def batch_axis(spec: InputSpec, specs: Sequence[InputSpec]) -> int | None:
    """The open axis that is the batch: the first of all, or where that is fixed, one that is called as a batch is.

    A recurrent state (2, N, 128) beside an input (N, T) has it second, and may give it no name. So does a sequence (T, N, 32)
    beside (N, 48), by the name that both have.
    """
    opened = [axis for axis, size in enumerate(spec.shape) if not isinstance(size, int)]
    if not opened:
        return None
    firsts = {other.shape[0] for other in specs if other is not spec and other.shape and not isinstance(other.shape[0], int)}
    if opened[0] == 0:
        named = firsts & {spec.shape[axis] for axis in opened[1:]} - {None}
        alone = spec.shape[0] is not None and spec.shape[0] not in firsts and not BATCH.fullmatch(str(spec.shape[0]))
        return next(axis for axis in opened if spec.shape[axis] in named) if alone and named else 0
    for axis in opened:
        size = spec.shape[axis]
        if (size in firsts) if size is None else (size in firsts or BATCH.fullmatch(str(size))):
            return axis if axis < len(spec.shape) - 1 else None
    return None


def left_open(spec: InputSpec, specs: Sequence[InputSpec], wishes: Wishes) -> list[int]:
    """The axes besides the batch whose size neither the file nor `wishes` give."""
    if wishes.inputs.get(spec.name, Given()).shape is not None:
        return []
    batch = batch_axis(spec, specs)
    return [
        axis
        for axis, size in enumerate(spec.shape)
        if axis != batch and not isinstance(size, int) and not (size is not None and size in wishes.dims)
    ]


def shapes_to_try(specs: Sequence[InputSpec], wishes: Wishes) -> Iterator[dict[str, Shape]]:
    """Shapes of all inputs, None in the place of the batch; one alone where nothing is left open.

    Sizes of one name are the same everywhere.
    """
    keys = {(spec.name, axis): spec.shape[axis] or (spec.name, axis) for spec in specs for axis in left_open(spec, specs, wishes)}
    lists = {keys[spec.name, axis]: _usual(spec) for spec in specs for axis in left_open(spec, specs, wishes)}
    several = dict.fromkeys((*_alike(list(lists.values())), *islice(product(*lists.values()), ATTEMPTS)))
    for chosen in islice(several, ATTEMPTS):
        sizes = dict(zip(lists, chosen, strict=True))
        found = {place: sizes[key] for place, key in keys.items()}
        yield {spec.name: _shape(spec, wishes, found) for spec in specs}


def _shape(spec: InputSpec, wishes: Wishes, chosen: Mapping[tuple[str, int], int]) -> Shape:
    given = wishes.inputs.get(spec.name, Given()).shape
    if given is not None:
        return given
    return tuple(
        size if isinstance(size, int) else chosen.get((spec.name, axis), wishes.dims.get(size) if size is not None else None)
        for axis, size in enumerate(spec.shape)
    )


def _alike(lists: list[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """All first ones, all second ones, ...: height and width alike."""
    for number in range(max(map(len, lists), default=1)):
        yield tuple(sizes[min(number, len(sizes) - 1)] for sizes in lists)


def _usual(spec: InputSpec) -> tuple[int, ...]:
    rank, channels = len(spec.shape), spec.shape[1] if len(spec.shape) == 3 else None
    if rank >= 4 or channel_axis(spec) is not None:
        return PICTURE
    sound = spec.dtype.kind == "f" and (rank == 2 or (isinstance(channels, int) and channels <= 2))
    return SIGNAL if sound else SEQUENCE
