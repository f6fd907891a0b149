"""Which of the methods that could factor a layer does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from batude_onnx.budget import Terms, frontier
from batude_onnx.decomposition import alternatives
from batude_onnx.records import FloatArray, RankPlan, Site

Allowances = Mapping[str, float]


def alike(sites: Sequence[Site], terms: Terms) -> dict[str, float]:
    """What each layer may cost, in the scalar price of `terms`, if all of them shrink alike to meet the tightest limit."""
    wholes = sum((terms.wholes(site) for site in sites), np.zeros(len(terms.metrics)))
    share = float((terms.left(sites) / np.maximum(wholes, 1e-9)).min())
    return {site.key: share * terms.scalar(site).whole for site in sites}


def planned(sites: Sequence[Site], plan: RankPlan, terms: Terms) -> dict[str, float]:
    """What each layer costs in `plan`; a layer left whole is not among them."""
    chosen, by_key = plan.chosen(), {site.key: site for site in sites}
    return {key: float(terms.scalar(by_key[key]).ranks[tuple(rank - 1 for rank in ranks)]) for key, ranks in chosen.items()}


def choose(sites: Sequence[Site], losses: Callable[[Site], FloatArray], terms: Terms, allowances: Allowances) -> list[Site]:
    """`sites` with the method that loses least of each layer for what it may cost; one without an allowance stays as it is.

    `losses(site)`: the share of its energy that the site's method loses, by ranks. Where two lose the same, the first one stays.
    """

    def lost(site: Site) -> float:
        front = frontier(losses(site), terms.scalar(site), terms.allowed(site))
        index = int(np.searchsorted(front.prices, allowances[site.key], side="right")) - 1
        return float(front.losses[index]) if index >= 0 else 1.0

    free = allowances.keys() - terms.choices.keys()
    return [min(alternatives(site), key=lost) if site.key in free else site for site in sites]
