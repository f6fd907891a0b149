"""From the relaxation to a choice: all that could still be better is looked through.

With the multipliers l of the relaxation and r_ij >= 0, what option j of layer i costs beyond the layer's best,

    loss(x) = bound + sum_i r_i(x_i) + l . (limits - price(x)),

and neither of the two terms behind the bound is negative in a choice that keeps the limits. So where a choice of loss bound + gap
is known, a better one has no option with r above the gap. Such options, the core, are few where the gap is small; cores that grow
are swept until the gap that is left is within them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from batude_onnx.budget.options import Options, cheapest, lost, spent
from batude_onnx.budget.relaxation import Relaxation, penalised
from batude_onnx.budget.sweep import sweep
from batude_onnx.records import FloatArray

# The first core, as a share of the bound; what is rounding, as a share of all that can be lost; and how fast a core grows.
FIRST, ROUNDING, GROWTH = 1e-6, 1e-13, 8.0
# A gap that is near enough, as a share of the bound, where a sweep was not complete.
ENOUGH = 1e-5


@dataclass(frozen=True)
class Found:
    """An option for each layer, and how far above the bound their loss is; `complete`: none is better."""

    chosen: list[int]
    gap: float
    complete: bool


def search(layers: Sequence[Options], limits: FloatArray, relaxed: Relaxation) -> Found | None:
    """The best choice found that keeps `limits` (metrics,); None where none was."""
    rounding = ROUNDING * sum(float(layer.losses.max(where=np.isfinite(layer.losses), initial=0.0)) for layer in layers)
    start = cheapest(layers, limits)
    best, gap = None, np.inf
    if (spent(layers, start) <= limits).all():
        best, gap = start, lost(layers, start) - relaxed.bound
    within = FIRST * abs(relaxed.bound) + rounding
    while True:
        chosen, complete = sweep(layers, limits, relaxed, within + rounding)
        if chosen is not None and lost(layers, chosen) - relaxed.bound < gap:
            best, gap = chosen, lost(layers, chosen) - relaxed.bound
        if gap <= within or (not complete and gap <= ENOUGH * abs(relaxed.bound)):
            break
        if best is None and within > _farthest(layers, relaxed):
            break
        within = min(GROWTH * within, gap)
    return None if best is None else Found(best, max(0.0, gap), complete)


def _farthest(layers: Sequence[Options], relaxed: Relaxation) -> float:
    """More than any choice costs beyond the bound."""
    return sum(float(paid.max(where=np.isfinite(paid), initial=0.0)) for paid in penalised(layers, relaxed.multipliers))
