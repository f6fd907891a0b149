"""Eq. 15 as the paper solves it: switch on the largest singular value left, over all layers and modes, until the budget is
reached (Algorithm 1, line 4).

    max sum of gains of the ranks switched on   subject to   P(ranks) <= beta

Three facts of real networks go with it: each rank is at least 1; a layer whose chain would cost as much as the layer itself stays
whole; a rank larger than the rest of the core can fill is not bought. Ranks that suit the runtime are bought in whole steps.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np

from batude_onnx.budget.terms import Choice, Terms, plan_of, require_feasible, wasteful
from batude_onnx.decomposition import max_ranks
from batude_onnx.records import FloatArray, RankPlan, Site

# gains[key][k][r]: what the (r+1)-th rank of the k-th mode adds, descending in r.
Gains = Mapping[str, Sequence[FloatArray]]


def solve_greedy(sites: Sequence[Site], gains: Gains, terms: Terms) -> RankPlan:
    """Ranks within all limits of `terms`. Raises BudgetError where there are none."""
    require_feasible(sites, terms)
    by_key = {site.key: site for site in sites}
    most = {site.key: _bounds(site, gains[site.key]) for site in sites}
    steps = {site.key: [_steps(bound, terms) for bound in most[site.key]] for site in sites}
    choices: dict[str, Choice] = {site.key: _first(site, steps[site.key], terms) for site in sites}
    left = terms.left(sites) - sum((_cost(site, choices[site.key], terms) for site in sites), np.zeros(len(terms.metrics)))
    queue: list[tuple[float, str, int]] = []
    held: dict[str, list[int]] = {}  # modes that wait for another mode's rank to grow

    def following(key: str, mode: int) -> int | None:
        ranks = choices[key]
        return None if ranks is None else next((step for step in steps[key][mode] if step > ranks[mode]), None)

    def push(key: str, mode: int) -> None:
        step, ranks = following(key, mode), choices[key]
        if step is not None and ranks is not None:
            # What a step of several ranks adds is their mean, so that steps of all lengths compare.
            heapq.heappush(queue, (-float(np.mean(gains[key][mode][ranks[mode] : step])), key, mode))

    for site in sites:
        for mode in range(len(most[site.key]) if site.key not in terms.choices else 0):
            push(site.key, mode)
    while queue:
        _, key, mode = heapq.heappop(queue)
        ranks, site, step = choices[key], by_key[key], following(key, mode)
        if ranks is None or step is None:
            continue
        wanted: Choice = tuple(step if index == mode else rank for index, rank in enumerate(ranks))
        if wanted is not None and wasteful(site, wanted):
            held.setdefault(key, []).append(mode)
            continue
        if not _worth(site, wanted, terms):
            wanted = None
        price = _cost(site, wanted, terms) - _cost(site, ranks, terms)
        if (price > left).any():
            continue  # prices only grow and what is left only shrinks: this mode will not fit again
        left = left - price
        choices[key] = wanted
        for waiting in {mode, *held.pop(key, [])}:
            push(key, waiting)
    return plan_of(sites, choices, terms)


def _cost(site: Site, choice: Choice, terms: Terms) -> FloatArray:
    """Under all limits."""
    return np.array([terms.price(site, choice, metric) for metric in terms.metrics])


def _bounds(site: Site, gains: Sequence[FloatArray]) -> tuple[int, ...]:
    """The largest useful rank of each mode."""
    most = max_ranks(site)
    return tuple(min(bound, len(mode)) for bound, mode in zip(most, gains, strict=True))


def _steps(bound: int, terms: Terms) -> list[int]:
    """The ranks up to `bound` that suit the runtime."""
    ranks = np.arange(1, bound + 1)
    return [int(rank) for rank in ranks[np.asarray(terms.alignment.fits(ranks, bound))]]


def _first(site: Site, steps: Sequence[Sequence[int]], terms: Terms) -> Choice:
    """The smallest ranks, or whole where these cost no less; or the one choice that there is."""
    if site.key in terms.choices:
        return terms.choices[site.key]
    if not all(steps):
        return None
    smallest = tuple(mode[0] for mode in steps)
    return smallest if _worth(site, smallest, terms) else None


def _worth(site: Site, ranks: Choice, terms: Terms) -> bool:
    """Whether a layer costs less factored than whole under every limit, and is no more work."""
    cheaper = bool((_cost(site, ranks, terms) < terms.wholes(site)).all())
    return cheaper and terms.price(site, ranks, "macs") <= terms.price(site, None, "macs")
