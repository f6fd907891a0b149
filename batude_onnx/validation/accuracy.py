"""How good outputs are: against labels for a classifier, against the original model's outputs for any model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from batude_onnx.errors import DataError
from batude_onnx.validation.parity import cosine

Array = npt.NDArray[Any]

# Among fewer classes, "one of the top five" says little.
TOP5_FROM_CLASSES = 10
# How far from 1 the sum of a row of float16 probabilities may be.
SOFTMAX_ROUNDING = 1e-2


def is_classifier(output: Array) -> bool:
    """Whether an output looks like class scores: floats (N, K) with more than one class."""
    return output.ndim == 2 and output.shape[1] > 1 and output.dtype.kind == "f"


def classification(logits: Array, labels: Array) -> dict[str, float]:
    """`top1` and (from ten classes up) `top5` in percent, `cross_entropy` in nats, and `n`, of `logits` (N, K) against `labels`
    (N,).

    Of equal scores the lower class counts as the guess, so that constant scores are no better than that class's share; a
    row with a NaN is wrong. Raises DataError where the shapes or the labels do not fit or there are no samples.
    """
    if not is_classifier(logits) or labels.shape != (len(logits),) or len(labels) == 0:
        raise DataError(f"class scores {logits.shape} do not fit labels {labels.shape}; wanted (N, K) and (N,), N from 1 up")
    classes = logits.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"labels from {labels.min()} to {labels.max()} do not fit {classes} classes; allowed: 0 to {classes - 1}")
    depth = 5 if classes >= TOP5_FROM_CLASSES else 1
    guesses = np.argsort(-logits.astype(np.float64), axis=1, kind="stable")[:, :depth]
    hits = (guesses == labels[:, None]) & ~np.isnan(logits).any(axis=1, keepdims=True)
    result = {"top1": 100.0 * float(hits[:, 0].mean()), "cross_entropy": _cross_entropy(logits, labels), "n": len(labels)}
    if depth == 5:
        result["top5"] = 100.0 * float(hits.any(axis=1).mean())
    return result


def _cross_entropy(scores: Array, labels: Array) -> float:
    """Mean over samples; `scores` are taken as probabilities where each row is one, else as logits. NaN where one is a NaN."""
    rows = scores.astype(np.float64)
    if (rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) < SOFTMAX_ROUNDING).all():
        rows = np.log(np.maximum(rows, np.finfo(np.float32).tiny))
    if np.isnan(rows).any():
        return float("nan")
    return float(np.mean(np.logaddexp.reduce(rows, axis=1) - rows[np.arange(len(rows)), labels]))


def agreement(a: Array, b: Array) -> dict[str, float]:
    """How alike two models answer, `a` being the original: `cosine`, the mean over samples (axis 0) of the cosine between
    their flattened outputs; for class scores also `top1_agreement`, the percentage of samples with the same first choice.

    Raises DataError for different shapes or no samples.
    """
    if a.shape != b.shape or a.ndim == 0 or len(a) == 0:
        raise DataError(f"outputs of shape {a.shape} and {b.shape} cannot be compared; wanted the same shape, N from 1 up")
    result = {"cosine": float(np.mean([cosine(first, second) for first, second in zip(a, b, strict=True)]))}
    if is_classifier(a):
        valid = ~(np.isnan(a).any(axis=1) | np.isnan(b).any(axis=1))
        result["top1_agreement"] = 100.0 * float(((a.argmax(axis=1) == b.argmax(axis=1)) & valid).mean())
    return result
