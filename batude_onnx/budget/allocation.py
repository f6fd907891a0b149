"""Ranks for all layers under any limits at once: the relaxation, and the search that starts from it.

What a metric means is not known here: a limit is a number, and so is a price.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from batude_onnx.budget.options import lost, options_of
from batude_onnx.budget.relaxation import relax
from batude_onnx.budget.search import search
from batude_onnx.budget.terms import Choice, Mask
from batude_onnx.records import FloatArray, Prices


@dataclass(frozen=True)
class Allocation:
    """Ranks of every layer, None for whole, and their loss, of which no choice within the limits has less than `bound`.

    `complete`: none has less than `loss` either.
    """

    choices: Mapping[str, Choice]
    loss: float
    bound: float
    complete: bool


def allocate(
    losses: Mapping[str, FloatArray],
    prices: Mapping[str, Mapping[str, Prices]],
    limits: Mapping[str, float],
    allowed: Mapping[str, Mask | None] | None = None,
    factored: Collection[str] = (),
) -> Allocation | None:
    """The choice of least loss; None where none was found that keeps all limits.

    `losses[key][r1 - 1, r2 - 1, ...]`, a whole layer loses nothing; `prices[metric][key]`; `limits[metric]`: what the layers may
    cost together; `allowed[key]`: the ranks that a layer may have, all of them where there is None or nothing; those in
    `factored` may not stay whole.
    """
    layers = options_of(losses, {metric: prices[metric] for metric in limits}, allowed or {}, factored)
    if not all(len(layer.losses) for layer in layers):
        return None
    most = np.array(list(limits.values()), dtype=np.float64)
    relaxed = relax(layers, most)
    found = search(layers, most, relaxed) if relaxed.mixed else None
    if found is None:
        return None
    choices = {key: layer.choice(index) for key, layer, index in zip(losses, layers, found.chosen, strict=True)}
    return Allocation(choices, lost(layers, found.chosen), relaxed.bound, found.complete)
