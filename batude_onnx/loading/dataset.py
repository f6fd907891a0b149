"""A data set for one model: read, checked, ready to be trained on and evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batude_onnx.errors import DataError
from batude_onnx.loading.arrays import read_arrays
from batude_onnx.loading.inputs import InputSpec
from batude_onnx.loading.samples import Array, checked_constant, checked_labels, checked_samples

# `limit` always picks the same samples, so that two runs with the same limit train on the same data.
LIMIT_SEED = 0


@dataclass(frozen=True)
class Dataset:
    """Samples are uint8 (N, H, W, C) with `mean` and `std` (C,), or float32 in the model's layout with neither.

    Labels are int64 (N,). Without a test split `x_test` is None.
    """

    x_train: Array
    y_train: npt.NDArray[np.int64] | None = None
    x_test: Array | None = None
    y_test: npt.NDArray[np.int64] | None = None
    mean: Array | None = None
    std: Array | None = None

    @property
    def prepared(self) -> str:
        """How images are normalised, to be said behind their number; nothing for floats, which are taken as they are."""
        if self.mean is None or self.std is None:
            return ""
        mean, std = (",".join(f"{value:.4g}" for value in np.atleast_1d(array)) for array in (self.mean, self.std))
        plain = not np.any(self.mean) and np.all(self.std == 1)
        return "; pixels / 255, with no mean and std" if plain else f"; pixels / 255, mean {mean}, std {std}"


def load_dataset(
    path: Path,
    spec: InputSpec,
    classes: int | None,
    *,
    limit: int | None = None,
    mean: Sequence[float] | Array | None = None,
    std: Sequence[float] | Array | None = None,
) -> Dataset:
    """The data in `path` (.npz with keras names, or one unlabelled .npy) for the model input `spec`.

    uint8 images are scaled to 0..1 and then normalised, (x - mean) / std; `mean` and `std` given here override the file's,
    and without either they are 0 and 1. Floats are taken as they are; the file's mean and std do not apply to them.
    `classes` bounds the labels. `limit` keeps that many training samples, always the same ones; the test split stays whole.
    Raises DataError, one line, for everything that does not fit.
    """
    arrays = read_arrays(path)
    try:
        return _build(arrays, spec, classes, limit, mean, std)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _build(
    arrays: dict[str, Array], spec: InputSpec, classes: int | None, limit: int | None, mean: object, std: object
) -> Dataset:
    x_train, y_train = _split(arrays, "train", spec, classes)
    x_test, y_test = _split(arrays, "test", spec, classes) if "x_test" in arrays else (None, None)
    assert x_train is not None
    if x_test is not None and x_test.dtype != x_train.dtype:
        raise DataError(f"x_train is {arrays['x_train'].dtype} but x_test is {arrays['x_test'].dtype}; give both as one type")
    means = stds = None
    if x_train.dtype == np.uint8:
        channels = x_train.shape[-1]
        means = checked_constant(arrays.get("mean", 0.0) if mean is None else mean, "mean", channels)
        stds = checked_constant(arrays.get("std", 1.0) if std is None else std, "std", channels)
        if (means > 1).any():
            raise DataError(f"mean is {means.tolist()}; it is of images scaled to 0..1: divide it, and std, by 255")
    elif mean is not None or std is not None:
        raise DataError("a mean or std was given, but the samples are floats, which are taken as they are; leave them out")
    if limit is not None:
        if limit < 1:
            raise DataError(f"a limit of {limit} samples leaves nothing to train on; give 1 or more")
        kept = np.random.default_rng(LIMIT_SEED).permutation(len(x_train))[:limit]
        x_train, y_train = x_train[kept], None if y_train is None else y_train[kept]
    return Dataset(x_train, y_train, x_test, y_test, means, stds)


def _split(
    arrays: dict[str, Array], part: str, spec: InputSpec, classes: int | None
) -> tuple[Array, npt.NDArray[np.int64] | None]:
    """Samples and labels (or None) of 'train' or 'test'."""
    samples = checked_samples(arrays[f"x_{part}"], f"x_{part}", spec)
    labels = arrays.get(f"y_{part}")
    return samples, None if labels is None else checked_labels(labels, f"y_{part}", len(samples), classes)


def holdout(dataset: Dataset, fraction: float = 0.1, most: int = 5000, seed: int = 0) -> Dataset:
    """`dataset` with a random part of its training samples moved to the test split.

    The part is `fraction` of them, at least 1 and at most `most`. A data set with a test split is returned as it is.
    Raises DataError where fewer than 2 samples are there to be split.
    """
    if dataset.x_test is not None:
        return dataset
    samples = len(dataset.x_train)
    if samples < 2:
        raise DataError("the data holds 1 sample, which cannot be both trained on and tested on; give at least 2")
    held = min(most, max(1, round(samples * fraction)), samples - 1)
    order = np.random.default_rng(seed).permutation(samples)
    test, train = order[:held], order[held:]
    labels = dataset.y_train
    return replace(
        dataset,
        x_train=dataset.x_train[train],
        y_train=None if labels is None else labels[train],
        x_test=dataset.x_train[test],
        y_test=None if labels is None else labels[test],
    )


def preprocess(x: Array, mean: Array | None, std: Array | None) -> npt.NDArray[np.float32]:
    """uint8 images (N, H, W, C) -> float32 (N, C, H, W), `x / 255` normalised by `mean` and `std` (C,); floats unchanged.

    The same conversion as the training batches make, in NumPy, for onnxruntime.
    """
    if x.dtype != np.uint8:
        return np.ascontiguousarray(x, dtype=np.float32)
    channels = x.shape[-1]
    means = np.zeros(channels) if mean is None else np.asarray(mean, dtype=np.float64)
    stds = np.ones(channels) if std is None else np.asarray(std, dtype=np.float64)
    scale: npt.NDArray[Any] = (1.0 / (255.0 * stds)).astype(np.float32)
    offset: npt.NDArray[Any] = (-means / stds).astype(np.float32)
    normalised = x.astype(np.float32) * scale + offset
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2), dtype=np.float32)
