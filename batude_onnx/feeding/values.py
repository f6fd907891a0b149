"""Seeded values of one input: smooth pictures, numbers of a range, or standard normal ones.

White noise is unlike any picture: a detector shows nothing but its floor on it. A picture here is noise on grids of a few sizes,
drawn out to the picture's and added, so that neighbours are alike, and channels half alike; and in places there are blots with
hard edges, as things and letters have them.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from batude_onnx.errors import ModelError
from batude_onnx.loading import InputSpec

Array = npt.NDArray[Any]

# Elements of one input: 8 GB of floats.
MOST = 2**31
# How many channels a picture may have.
CHANNELS = (1, 3, 4)
# Cells on a side of the grids that a picture is drawn from, and how much each counts.
GRIDS = ((3, 1.0), (8, 0.6), (32, 0.3))
# Cells on a side of where blots are, pixels on a side of a blot, and how many deviations they are off the mean.
PLACES, BLOT, CONTRAST = 8, 6, 1.0
# Of a picture this many deviations to both sides of its mean are drawn over the range.
WIDTH = 2.0


def channel_axis(spec: InputSpec) -> int | None:
    """Where a picture's channels lie; None for what is none: (N, C, H, W), (N, H, W, C), or bytes (H, W, C)."""
    rank = len(spec.shape)
    if rank == 4:
        return next((axis for axis in (1, 3) if spec.shape[axis] in CHANNELS), None)
    return 2 if rank == 3 and spec.dtype == np.uint8 and spec.shape[2] in CHANNELS else None


def fill(spec: InputSpec, shape: tuple[int, ...], low: float | None, high: float | None, generator: np.random.Generator) -> Array:
    """Values from `low` to `high`, both included; standard normal ones where they are None.

    Raises ModelError for what is too large, or for a type that holds no numbers.
    """
    if prod(shape) > MOST:
        raise ModelError(f"input {spec} has {prod(shape):,} elements, more than can be run; correct its shape")
    # Kind 'V' holds the small floats of ml_dtypes (bfloat16, float8), which cast like floats.
    if spec.dtype.kind not in "biufV":
        raise ModelError(f"input {spec} cannot be filled with numbers; only float, integer and boolean inputs can")
    axis = channel_axis(spec)
    if low is None or high is None:
        return generator.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
    if axis is not None and low < high:
        drawn = (_pictures(shape, axis, generator) / WIDTH + 1) / 2
        drawn = low + (high - low) * drawn.clip(0, 1)
        return (drawn if spec.dtype.kind in "fV" else drawn.round()).astype(spec.dtype)
    if spec.dtype.kind in "biu":
        return generator.integers(int(low), int(high), shape, endpoint=True).astype(spec.dtype)
    return generator.uniform(low, high, shape).astype(np.float32).astype(spec.dtype)


def _pictures(shape: tuple[int, ...], axis: int, generator: np.random.Generator) -> Array:
    """Pictures of about mean 0 and deviation 1 in all."""
    sizes = [size for place, size in enumerate(shape) if place != axis]
    *outer, height, width = sizes

    def noise(rows: int, columns: int, *stack: int) -> Array:
        grid = generator.standard_normal((*stack, max(1, min(rows, height)), max(1, min(columns, width))), dtype=np.float32)
        return _drawn_out(height, grid.shape[-2]) @ grid @ _drawn_out(width, grid.shape[-1]).T

    total = np.zeros((shape[axis], *outer, height, width), np.float32)
    for cells, weight in GRIDS:
        total += np.float32(weight) * (noise(cells, cells, *outer) + noise(cells, cells, shape[axis], *outer))
    total = (total - total.mean()) / max(float(total.std()), 1e-6)
    blots = CONTRAST * np.sign(noise(height // BLOT, width // BLOT, *outer))
    total = np.where(noise(PLACES, PLACES, *outer) > 0.5, blots, total)
    return np.moveaxis(total, 0, axis)


def _drawn_out(size: int, cells: int) -> npt.NDArray[np.float32]:
    """(size, cells): linear interpolation from `cells` points, the first and last of them at the ends."""
    far = np.abs(np.linspace(0, cells - 1, size)[:, None] - np.arange(cells))
    drawn: npt.NDArray[np.float32] = np.maximum(0, 1 - far).astype(np.float32)
    return drawn
