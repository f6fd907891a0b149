"""What a plan promises, layer by layer, and what other budgets would: all that can be said before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from batude_onnx.budget import Terms, frontier, parse_budget
from batude_onnx.errors import BudgetError
from batude_onnx.opening import Case
from batude_onnx.records import Cost, FloatArray, LayerPlan, Outlook, RankPlan, Site, Step, Tried
from batude_onnx.training.planning import Planned

# Shares of a layer's price at which its damage is told.
SHARES = (0.75, 0.5, 0.35, 0.25, 0.15)


def look(case: Case, planned: Planned, sweep: Sequence[str], sensitive: bool, whole: Mapping[str, str]) -> Outlook:
    """`whole`: reasons of layers left alone. `sweep`: other budgets, all of them tried. `sensitive`: each layer's damage, too."""
    damage = planned.damage()
    by_key = {site.key: site for site in planned.sites}
    rows = tuple(_row(by_key.get(site.key, site), case.terms, planned.plan, damage, whole) for site in case.seen.sites)
    return Outlook(
        model=str(case.settings.model),
        budget=case.budget,
        original=case.terms.whole,
        predicted=planned.plan.cost,
        loss=planned.loss(),
        measured=bool(planned.measured),
        layers=rows,
        sweep=tuple(_step(text, case, planned) for text in sweep),
        sensitivity={site.key: _tried(site, case.terms, damage[site.key]) for site in planned.sites} if sensitive else {},
    )


def _row(site: Site, terms: Terms, plan: RankPlan, damage: Mapping[str, FloatArray], whole: Mapping[str, str]) -> LayerPlan:
    ranks = plan.ranks.get(site.key)
    if ranks is None:
        same = _cost(site, terms, None) if site.method else Cost(site.params, site.macs)
        return LayerPlan(site.key, site.op, None, None, whole.get(site.key), same, same, 0.0)
    at = tuple(rank - 1 for rank in ranks)
    return LayerPlan(
        site.key, site.op, site.method, ranks, None, _cost(site, terms, None), _cost(site, terms, ranks),
        float(damage[site.key][at]),
    )  # fmt: skip


def _cost(site: Site, terms: Terms, ranks: tuple[int, ...] | None) -> Cost:
    size, latency = (terms.price(site, ranks, metric) if metric in terms.metrics else None for metric in ("size", "latency"))
    return Cost(int(terms.price(site, ranks, "params")), int(terms.price(site, ranks, "macs")), size, latency)


def _step(text: str, case: Case, planned: Planned) -> Step:
    """What another budget gives, by the same measurements and methods unless those cannot be made small enough for it."""
    limits = parse_budget([text], case.terms.whole).limits
    if any(limit.metric not in case.terms.metrics for limit in limits):
        raise BudgetError(
            f"sweep {text!r} limits what the budget does not: give --budget {limits[0].text} first, then others of it"
        )
    try:
        found = planned.under(case.terms.tightened({limit.metric: limit.limit for limit in limits}))
    except BudgetError:
        return Step(text, None, None)
    return Step(text, found.plan.cost, found.loss())


def _tried(site: Site, terms: Terms, damage: FloatArray) -> tuple[Tried, ...]:
    """The least damage at some shares of a layer's price."""
    prices = terms.scalar(site)
    front = frontier(damage, prices, terms.allowed(site), whole=False)
    found = []
    for share in SHARES:
        index = int(np.searchsorted(front.prices, share * prices.whole, side="right")) - 1
        if index >= 0:
            found.append(Tried(share, front.choice(index) or (), float(front.losses[index])))
    return tuple(found)
