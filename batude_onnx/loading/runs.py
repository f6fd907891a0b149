"""Data for a model of several inputs: an .npz with one array for each input, by name, whose first axis counts the runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batude_onnx.errors import DataError
from batude_onnx.loading.arrays import ALIASES, read_named
from batude_onnx.loading.inputs import InputSpec

SAMPLES = ("x_train", *ALIASES["x_train"])

Run = dict[str, npt.NDArray[Any]]


def load_runs(path: Path, specs: Sequence[InputSpec], limit: int | None = None) -> tuple[Run, ...]:
    """What is fed to the inputs `specs` in each run: an input of shape (1, 3, 8, 8) is given as (runs, 1, 3, 8, 8).

    Samples of the only input of a model may also be called as for training, and are then run one by one, or in whole batches
    where their size is fixed.

    `limit` keeps the first so many. Raises DataError, one line, for a missing array, another shape or kind of type, and arrays of
    different lengths.
    """
    arrays = dict(read_named(path))
    names = [name for name in SAMPLES if name in arrays]
    if len(specs) == 1 and specs[0].name not in arrays and names:
        given, batch = arrays[names[0]], specs[0].shape[0] if specs[0].shape else 1
        size = batch if isinstance(batch, int) else 1
        whole = len(given) // size * size
        arrays[specs[0].name] = given[:whole].reshape(whole // size, size, *given.shape[1:])
    for spec in specs:
        wanted = f"{path}: input {spec} wants an array {spec.name!r} whose first axis counts the runs"
        if spec.name not in arrays:
            raise DataError(f"{wanted}; keys found: {', '.join(arrays) or 'none'}")
        array = arrays[spec.name]
        sizes = array.shape[1:]
        fits = len(sizes) == len(spec.shape) and all(
            not isinstance(size, int) or size == given for size, given in zip(spec.shape, sizes, strict=True)
        )
        if array.ndim == 0 or not fits:
            raise DataError(f"{wanted}, not one of shape {array.shape}")
        if (array.dtype.kind == "f") != (spec.dtype.kind == "f"):
            raise DataError(f"{wanted}, not one of {array.dtype}")
    lengths = {spec.name: len(arrays[spec.name]) for spec in specs}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise DataError(f"{path}: the arrays hold {lengths} runs; all must hold the same number, at least 1")
    cast = {spec.name: arrays[spec.name].astype(spec.dtype) for spec in specs}
    count = min(lengths.values()) if limit is None else min(limit, *lengths.values())
    return tuple({name: np.asarray(array[number]) for name, array in cast.items()} for number in range(count))
