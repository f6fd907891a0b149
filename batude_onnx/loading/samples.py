"""Samples, labels and normalisation held against the model's input: every misfit is one line.

Two kinds of samples are taken: uint8 images, kept as (N, H, W, C) for a model input (N, C, H, W); and floats that already
lie in the model's own layout and range, passed on as float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batude_onnx.errors import DataError
from batude_onnx.loading.inputs import InputSpec

Array = npt.NDArray[Any]
Sizes = Sequence[int | str | None]

# How many channels an image may have; tells a channels-last model from a channels-first one.
IMAGE_CHANNELS = (1, 3, 4)
# Samples looked at together when floats are searched for NaN: bounds the memory of the search.
CHUNK = 1024


def checked_samples(array: Array, name: str, spec: InputSpec) -> Array:
    """`array` as uint8 (N, H, W, C) or float32 (N, *input shape); raises DataError for anything else."""
    if array.ndim == 0 or len(array) == 0:
        raise DataError(f"{name} holds no samples (shape {array.shape}); give at least one")
    if spec.dtype.kind != "f":
        raise DataError(f"the model's input {spec} is not a float input; only models with a float input can be trained")
    if array.dtype == np.uint8:
        return _images(array, name, spec)
    if array.dtype in (np.float16, np.float32, np.float64):
        return _floats(array, name, spec)
    raise DataError(f"{name} is {array.dtype}; give uint8 images or float32 samples in the model's layout ({spec})")


def checked_labels(array: Array, name: str, samples: int, classes: int | None) -> npt.NDArray[np.int64]:
    """`array` as int64 (N,), one class index per sample, each in 0..classes-1 (from 0 up where `classes` is None)."""
    if array.dtype.kind not in "iu":
        raise DataError(f"{name} is {array.dtype}, not integer; give class indices, {name}.astype('int64')")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]  # keras ships CIFAR's labels as a column
    if array.ndim != 1:
        hint = f"; one-hot? give {name}.argmax(axis=1)" if array.ndim == 2 else ""
        raise DataError(f"{name} has shape {array.shape}; labels are one class index per sample, shape ({samples},){hint}")
    if len(array) != samples:
        raise DataError(f"{name} holds {len(array)} labels for {samples} samples; the two must be equal")
    top = np.iinfo(np.int64).max if classes is None else classes - 1
    wrong = np.flatnonzero((array < 0) | (array > top))
    if len(wrong):
        allowed = "0 and up" if classes is None else f"0..{top}, as the model has {classes} classes"
        raise DataError(f"{name}[{wrong[0]}] is {array[wrong[0]]} ({len(wrong)} such labels); allowed: {allowed}")
    return array.astype(np.int64)


def checked_constant(values: object, name: str, channels: int) -> Array:
    """A mean or std as float64 (C,): one value per channel, or one for all. A std must be above 0."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is not a list of numbers ({values!r}); give {channels} values") from error
    if array.size not in (1, channels) or array.ndim > 1:
        raise DataError(f"{name} has shape {array.shape}; the images have {channels} channels: give {channels} values, or one")
    array = np.broadcast_to(array.reshape(-1), (channels,)).copy()
    if not np.isfinite(array).all() or (name == "std" and (array <= 0).any()):
        raise DataError(f"{name} is {array.tolist()}; every value must be finite" + (" and above 0" if name == "std" else ""))
    return array


def _fits(sizes: Sequence[int], wanted: Sizes) -> bool:
    """Whether `sizes` are what the model wants, where it wants something."""
    return len(sizes) == len(wanted) and all(not isinstance(w, int) or s == w for s, w in zip(sizes, wanted, strict=True))


def _images(array: Array, name: str, spec: InputSpec) -> Array:
    if len(spec.shape) != 4:
        raise DataError(f"{name} is uint8 but the model's input {spec} is no image (N, C, H, W); give float32 in that shape")
    _, channels, height, width = spec.shape
    if width in IMAGE_CHANNELS and channels not in IMAGE_CHANNELS:
        raise DataError(
            f"{name} is uint8 but the model's input {spec} has its channels last; give float32 in that shape, already normalised"
        )
    if array.ndim == 3 and channels == 1:
        array = array[..., None]  # grey images without their channel axis, as in mnist.npz
    if _fits(array.shape[1:], (height, width, channels)):
        return array
    if _fits(array.shape[1:], (channels, height, width)):
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    wanted = f"(N, {_text(height)}, {_text(width)}, {_text(channels)})"
    raise DataError(f"{name} has shape {array.shape}; the model's input {spec} wants uint8 images {wanted}")


def _floats(array: Array, name: str, spec: InputSpec) -> Array:
    if not _fits(array.shape[1:], spec.shape[1:]):
        wanted = ", ".join(["N", *(_text(size) for size in spec.shape[1:])])
        hint = ""
        if array.ndim == 4 and len(spec.shape) == 4 and _fits((array.shape[3], *array.shape[1:3]), spec.shape[1:]):
            hint = f"; its channels lie last: give {name}.transpose(0, 3, 1, 2)"
        raise DataError(f"{name} has shape {array.shape}; the model's input {spec} wants floats ({wanted}){hint}")
    with np.errstate(over="ignore"):  # a float64 too large for float32 becomes Inf, and is reported below
        samples = np.ascontiguousarray(array, dtype=np.float32)
    count, first = 0, None
    for start in range(0, len(samples), CHUNK):
        wrong = ~np.isfinite(samples[start : start + CHUNK])
        if wrong.any():
            count += int(wrong.sum())
            if first is None:
                position = np.unravel_index(int(wrong.argmax()), wrong.shape)
                first = (start + int(position[0]), *(int(p) for p in position[1:]))
    if first is not None:
        raise DataError(f"{name} holds {count} values that are NaN or Inf in float32, the first at index {first}; remove them")
    return samples


def _text(size: int | str | None) -> str:
    return "?" if size is None else str(size)
