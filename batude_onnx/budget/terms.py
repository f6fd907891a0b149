"""Among what ranks are chosen: the limits, what every layer costs at all of them, and which of them may be taken at all.

The solvers know nothing of what a metric means. They see, for each limit, a table of prices of each layer, and one mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from batude_onnx.decomposition import dense_cost, max_ranks, method_of
from batude_onnx.errors import BudgetError
from batude_onnx.records import Alignment, Budget, Cost, FloatArray, Limit, Prices, RankPlan, Site

Choice = tuple[int, ...] | None  # ranks, or None: the layer stays whole
Mask = npt.NDArray[np.bool_]
Ways = Callable[[Site], Sequence[Site]]

# Entries of a table that is kept for good. Of larger ones one layer's are kept at a time: all of them may be as large as a model.
KEPT = 2**12
# What a file holds of each layer besides its weight: names, attributes, shapes. Only a first guess; the file is measured.
BYTES_OF_A_LAYER = 250


@dataclass(frozen=True)
class Terms:
    """`whole`: what the untouched network costs under each metric of the budget.

    `times`: prices in ms, by (key, method); a layer without any can only stay whole. `itemsize`: bytes of a stored weight, by
    key; 4 where nothing is said. `choices`: by key, the only choices that may be taken of a layer; `least`: its smallest rank.
    """

    budget: Budget
    whole: Cost
    times: Mapping[tuple[str, str], Prices] = field(default_factory=dict)
    itemsize: Mapping[str, int] = field(default_factory=dict)
    alignment: Alignment = field(default_factory=Alignment)
    choices: Mapping[str, Choice] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict)
    _masks: dict[tuple[str, str | None], npt.NDArray[np.uint8]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _held: dict[tuple[str, str | None, str], Prices] = field(default_factory=dict, repr=False, compare=False)

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(limit.metric for limit in self.budget.limits)

    def tightened(self, limits: Mapping[str, float]) -> Terms:
        """The same with other limits, by metric."""
        changed = tuple(replace(limit, limit=limits.get(limit.metric, limit.limit)) for limit in self.budget.limits)
        return replace(self, budget=Budget(changed))

    def prices(self, site: Site, metric: str) -> Prices:
        """What `site` costs whole and, by its method, at each combination of ranks up to the largest useful ones."""
        key, held = (site.key, site.method, metric), self._held
        if key not in held:
            made = held[key] = self._prices(site, metric)
            if made.ranks.size > KEPT:
                for other in [other for other, one in held.items() if one.ranks.size > KEPT and other[:2] != key[:2]]:
                    del held[other]
        return held[key]

    def _prices(self, site: Site, metric: str) -> Prices:
        priced = np.asarray(self._factored(site, ranks_of(site), metric), dtype=np.float64)
        return Prices(self._whole(site, metric), np.broadcast_to(priced, max_ranks(site)))

    def _whole(self, site: Site, metric: str) -> float:
        """What a layer costs as it is."""
        if metric == "latency":
            return self._times(site).whole
        if metric == "size":
            return self.itemsize.get(site.key, 4) * site.params
        return float(dense_cost(site).of(metric))

    def _factored(self, site: Site, ranks: tuple[Any, ...], metric: str) -> Any:
        """What it costs at these ranks: numbers, or arrays of them, since a method's cost is a polynomial in the ranks."""
        if metric == "latency":
            return self._times(site).ranks[tuple(rank - 1 for rank in ranks)]
        cost = method_of(site).cost(site, ranks)
        if metric != "size":
            return cost.of(metric)
        links = len(method_of(site).outline(site.shape, site.geometry, ranks))
        return self.itemsize.get(site.key, 4) * cost.params + (links - 1) * (BYTES_OF_A_LAYER + 4 * len(site.key))

    def _times(self, site: Site) -> Prices:
        return self.times.get((site.key, str(site.method))) or Prices(0.0, np.full(max_ranks(site), np.inf))

    def price(self, site: Site, choice: Choice, metric: str) -> float:
        """What a layer costs under a choice."""
        return float(self._whole(site, metric) if choice is None else self._factored(site, choice, metric))

    def fixed(self, sites: Sequence[Site], metric: str) -> float:
        """What the network costs besides `sites`."""
        return float(self.whole.of(metric) - sum(self._whole(site, metric) for site in sites))

    def left(self, sites: Sequence[Site]) -> FloatArray:
        """What each limit leaves to `sites`, in the order of the limits."""
        return np.array([limit.limit - self.fixed(sites, limit.metric) for limit in self.budget.limits])

    def table(self, site: Site) -> FloatArray:
        """Prices under all limits, (limits, *ranks)."""
        return np.stack([self.prices(site, metric).ranks for metric in self.metrics])

    def wholes(self, site: Site) -> FloatArray:
        """What the whole layer costs under all limits."""
        return np.array([self._whole(site, metric) for metric in self.metrics])

    def scalar(self, site: Site) -> Prices:
        """All limits in one: what a layer costs as a share of what each allows, added up; under one limit, its own price."""
        if len(self.budget.limits) == 1:
            return self.prices(site, self.metrics[0])
        shares = np.array([1 / max(limit.limit, 1e-9) for limit in self.budget.limits])
        return Prices(float(shares @ self.wholes(site)), np.tensordot(shares, self.table(site), 1))

    def allowed(self, site: Site) -> Mask:
        """Which ranks may be taken: worth their price under at least one limit and dearer than the layer under none, aligned,
        none larger than the rest of the core can fill; or the one choice that was made."""
        key, most = (site.key, site.method), max_ranks(site)
        if key not in self._masks:
            self._masks[key] = np.packbits(self._allowed(site, most))
        return np.unpackbits(self._masks[key], count=prod(most)).view(np.bool_).reshape(most)

    def _allowed(self, site: Site, most: tuple[int, ...]) -> Mask:
        if site.key in self.choices:
            choice = self.choices[site.key]
            only = np.zeros(most, dtype=bool)
            if choice is not None:
                only[tuple(rank - 1 for rank in choice)] = True
            return only
        ranks = ranks_of(site)
        table, wholes = self.table(site), self.wholes(site).reshape((-1,) + (1,) * len(most))
        work = self.prices(site, "macs")
        # Whatever is limited, more work than before is no bargain.
        fits = np.asarray((table <= wholes).all(0) & (table < wholes).any(0) & (work.ranks <= work.whole), dtype=bool)
        for axis, bound in zip(ranks, most, strict=True):
            fits &= axis >= self.least.get(site.key, 1)
            fits &= np.asarray(self.alignment.fits(axis, bound), dtype=bool)
        fits &= ~np.asarray(wasteful(site, ranks), dtype=bool)
        return fits

    def may_stay_whole(self, site: Site) -> bool:
        """Whether the layer may be left as it is."""
        return self.choices.get(site.key) is None


def ranks_of(site: Site) -> tuple[npt.NDArray[np.int64], ...]:
    """All ranks of each mode, in arrays that broadcast against each other to every combination."""
    return tuple(axis + 1 for axis in np.indices(max_ranks(site), sparse=True))


def wasteful(site: Site, ranks: tuple[Any, ...]) -> Any:
    """Whether one rank is larger than the rest of the core can fill; for ints, or for arrays of them one rank a mode."""
    wasted: Any = False
    for number, rank in enumerate(ranks if len(ranks) > 1 else ()):
        wasted = wasted | (rank > prod(ranks[:number] + ranks[number + 1 :]) * prod(site.kernel))
    return wasted


def least(site: Site, terms: Terms) -> FloatArray:
    """The least that a layer can cost under each limit by itself, (limits,)."""
    fits = terms.allowed(site)
    smallest: FloatArray = np.array(
        [terms.prices(site, metric).ranks.min(where=fits, initial=np.inf) for metric in terms.metrics]
    )
    return np.minimum(smallest, terms.wholes(site)) if terms.may_stay_whole(site) else smallest


def as_it_is(site: Site) -> Sequence[Site]:
    """A layer that has its method."""
    return (site,)


def smallest_of(sites: Sequence[Site], terms: Terms, ways: Ways = as_it_is) -> FloatArray:
    """The least that the network can cost under each limit by itself, (limits,), each layer factored in one of its `ways`."""
    total: FloatArray = np.array([terms.fixed(sites, metric) for metric in terms.metrics])
    for site in sites:
        free = (site,) if site.key in terms.choices else ways(site)
        total += np.min([least(way, terms) for way in free], axis=0)
    return total


def require_feasible(sites: Sequence[Site], terms: Terms, ways: Ways = as_it_is) -> None:
    """Raise BudgetError, naming the smallest budget that could be met, where even the smallest ranks everywhere cost too much.

    `ways(site)`: the site with each method that may yet be taken. Each limit is looked at by itself.
    """
    for limit, smallest in zip(terms.budget.limits, smallest_of(sites, terms, ways).tolist(), strict=True):
        if np.isinf(smallest):
            raise BudgetError(f"budget {limit.text!r}: the ranks asked for of a layer could not be timed: give it others")
        if smallest > limit.limit * (1 + 1e-12):
            what = "the smallest ranks in every layer"
            if terms.choices or terms.least:
                what += " that is not told otherwise (by a plan, or for itself)"
            take = "are predicted to take" if limit.metric == "latency" else "already take"
            near = nearest(limit, smallest, terms.whole)
            raise BudgetError(
                f"budget {limit.text!r} allows {amount(limit.limit, limit.metric)}, but {what} {take} "
                f"{amount(smallest, limit.metric)}: the smallest budget that can be met is {near}"
            )


def amount(value: float, metric: str) -> str:
    """A limit as people read it."""
    if metric == "latency":
        return f"{value:.3f} ms"
    return f"{value:,.0f} {'bytes' if metric == 'size' else metric}"


def nearest(limit: Limit, smallest: float, whole: Cost) -> str:
    """The limit that `smallest` just meets, as people write it on the command line.

    A time is told as they told theirs: one machine takes other times on other days, and they keep their ratio.
    """
    if limit.metric == "latency":
        ratio = np.floor(100 * float(whole.of("latency")) / smallest) / 100
        told = limit.ratio is not None and ratio > 1
        return f"latency={ratio:.2f}x" if told else f"latency={np.ceil(smallest * 1000) / 1000:.3f}ms"
    text = f"{np.ceil(smallest):.0f}"
    return text if limit.metric == "params" else f"{limit.metric}={text}{'B' if limit.metric == 'size' else ''}"


def plan_of(sites: Sequence[Site], choices: Mapping[str, Choice], terms: Terms) -> RankPlan:
    """The plan with its predicted cost: parameters and MACs always, the rest where it is limited."""

    def cost(metric: str) -> float:
        return terms.fixed(sites, metric) + sum(terms.price(site, choices[site.key], metric) for site in sites)

    size, latency = (cost(metric) if metric in terms.metrics else None for metric in ("size", "latency"))
    return RankPlan(dict(choices), Cost(round(cost("params")), round(cost("macs")), size, latency))
