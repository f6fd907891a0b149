"""Which of the methods that could factor a layer does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from batude_onnx.budget import Terms, frontier, least, smallest_of
from batude_onnx.decomposition import alternatives
from batude_onnx.records import FloatArray, RankPlan, Site

Allowances = Mapping[str, float]
Ways = Callable[[Site], Sequence[Site]]

# Shares of a layer's energy that agree to so many digits are told apart by rounding only: two methods may be the same there.
DIGITS = 9


def alike(sites: Sequence[Site], terms: Terms) -> dict[str, float]:
    """What each layer may cost, in the scalar price of `terms`, if all of them shrink alike to meet the tightest limit."""
    wholes = sum((terms.wholes(site) for site in sites), np.zeros(len(terms.metrics)))
    share = float((terms.left(sites) / np.maximum(wholes, 1e-9)).min())
    return {site.key: share * terms.scalar(site).whole for site in sites}


def planned(sites: Sequence[Site], plan: RankPlan, terms: Terms) -> dict[str, float]:
    """What each layer costs in `plan`; a layer left whole is not among them."""
    chosen, by_key = plan.chosen(), {site.key: site for site in sites}
    return {key: float(terms.scalar(by_key[key]).ranks[tuple(rank - 1 for rank in ranks)]) for key, ranks in chosen.items()}


def choose(
    sites: Sequence[Site],
    losses: Callable[[Site], FloatArray],
    terms: Terms,
    allowances: Allowances,
    ways: Ways = alternatives,
) -> list[Site]:
    """`sites` with the method that loses least of each layer for what it may cost; one without an allowance stays as it is,
    unless a limit cannot be kept then.

    `losses(site)`: the share of its energy that the site's method loses, by ranks; `ways(site)`: the site with each method. Of
    two that lose the same the one that costs less is taken, else the first; where an allowance is too small for all, the one that
    comes nearest to it.
    """

    def score(site: Site) -> tuple[float, float]:
        front = frontier(losses(site), terms.scalar(site), terms.allowed(site))
        index = int(np.searchsorted(front.prices, allowances[site.key], side="right")) - 1
        if index < 0:
            return 1.0, float(front.prices[0])
        lost = front.losses.round(DIGITS)
        return float(lost[index]), float(front.prices[int((lost <= lost[index]).argmax())])

    free = allowances.keys() - terms.choices.keys()
    return feasible([min(ways(site), key=score) if site.key in free else site for site in sites], terms, ways)


def feasible(sites: Sequence[Site], terms: Terms, ways: Ways = alternatives) -> list[Site]:
    """`sites`, or, where no ranks of theirs are small enough for a limit, each with the method that can be made smallest: under
    that limit where this keeps the others, too, else under all limits together."""
    limits = np.array([limit.limit for limit in terms.budget.limits])
    broken = np.flatnonzero(smallest_of(sites, terms) > limits)
    if not len(broken):
        return list(sites)

    def smallest(under: Sequence[int]) -> list[Site]:
        def price(way: Site) -> float:
            return float((least(way, terms)[under] / np.maximum(limits[under], 1e-9)).sum())

        return [site if site.key in terms.choices else min(ways(site), key=price) for site in sites]

    tried = [smallest(under) for under in (*([index] for index in broken.tolist()), list(range(len(limits))))]
    return next((some for some in tried if (smallest_of(some, terms) <= limits).all()), tried[-1])
