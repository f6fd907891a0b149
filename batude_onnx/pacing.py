"""A plan held against the file and the clock before anything is trained, and the finished file once more.

What a layer will take in the file or in time is predicted. A network of the planned shapes, its weights without meaning, is built
and measured; where it is over a limit, that limit is tightened by as much and the ranks are chosen again. So they are where time
is not limited and yet the network would be slower than the original, or gain far less speed than the MACs that were asked for
promise, if that costs no more than a little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from batude_onnx import speed
from batude_onnx.budget import Terms, amount, nearest, smallest_of
from batude_onnx.errors import BudgetError, TooSlowError
from batude_onnx.loading import file_bytes
from batude_onnx.opening import Case
from batude_onnx.pricing import as_fast, sample_of, timed_terms
from batude_onnx.proving import Feeds
from batude_onnx.records import Limit, Site
from batude_onnx.settings import Watch
from batude_onnx.training.planning import Planned
from batude_onnx.training.recipe import RECIPES, Recipe
from batude_onnx.validation import Session, compare_latency, open_graph

MEASURED = {"size", "latency"}
ROUNDS = 6
STEP = 1e-6
# How far above a limit the smallest ranks may be predicted for it to be tried all the same: predictions are off by so much.
REACH = 1.1
# What a plan keeps below a limit of time, so that the finished file holds it in spite of what measurements spread.
MARGIN = 0.02
SECONDS, LONG_SECONDS, TRIES = 3.0, 8.0, 8
# Runs of each model in one measurement of SECONDS or less, at most, and in one of LONG_SECONDS.
RUNS, LONG_RUNS = 1000, 2000
# Tries of SECONDS each before a limit of time is called out of reach.
LAST_TRIES = 4
# Where time is not limited: how long a plan is looked at, the share of the original's time from which it counts as slower, the
# time in ms below which a run is spent on calls and not on layers, and how much more may be lost by one that is not slower.
GLANCE, SLOWER, SHORT, WORTH = 1.0, 1.03, 0.1, 1.5
# The share of a cut in MACs below which the speed is behind it, and that which it should then reach; the spread of times from
# which they tell nothing.
BEHIND, NEAR, UNSTEADY = 0.9, 0.95, 0.25

Latency = Mapping[str, float | int | str]


def within_reach(case: Case) -> Terms:
    """The terms of `case`, for a first plan: a limit of time that the smallest ranks are predicted to miss by little allows for
    them, as only a measurement tells whether they do."""
    terms = case.terms
    if "latency" not in terms.metrics:
        return terms
    limit, least = _of_time(case).limit, _least_time(case.seen.compressible, terms, RECIPES[case.settings.recipe])
    return terms.tightened({"latency": least * (1 + STEP)}) if limit < least <= REACH * limit else terms


def _least_time(sites: Sequence[Site], terms: Terms, recipe: Recipe) -> float:
    """What the smallest ranks of all layers are predicted to take, by whichever methods `recipe` may factor them."""
    return float(smallest_of(sites, terms, recipe.ways)[terms.metrics.index("latency")])


def paced(case: Case, planned: Planned, watch: Watch) -> Planned:
    """`planned`, or as much less as it takes to hold every limit that can only be measured.

    Where time is not limited, ranks that would make the network slower, or leave its speed far behind the cut in MACs that was
    asked for, give way to others if there are any that cost little more.
    Raises BudgetError where the ranks cannot be made small enough.
    """
    held = _limited(case, planned, watch)
    return _no_slower(case, held, watch) if _comparable(case, held) else held


def _limited(case: Case, planned: Planned, watch: Watch) -> Planned:
    # Of a large model the shapes alone would take as much memory as it does: the finished file is measured.
    measured = [limit for limit in case.budget.limits if limit.metric in MEASURED and not case.large]
    tight = {limit.metric: limit.limit for limit in measured}
    for _ in range(ROUNDS if measured else 0):
        shapes = _shapes(case, planned)
        over = {limit.metric: _over(case, limit, shapes, planned, watch) for limit in measured}
        if all(share <= 1 for share in over.values()):
            return planned
        tight.update({metric: _tighter(planned, metric, tight[metric], share) for metric, share in over.items() if share > 1})
        try:
            planned = planned.under(case.terms.tightened(tight))
        except BudgetError:
            if over.get("latency", 0.0) <= 1:
                raise
            return _smallest(case, planned, tight, watch)
    if not measured:
        return planned
    raise BudgetError(f"budget {case.budget.text!r} was not met in {ROUNDS} rounds of measuring: give a looser one")


def _smallest(case: Case, planned: Planned, tight: Mapping[str, float], watch: Watch) -> Planned:
    """The ranks that are predicted to take the least time, where they keep the limit though they are predicted not to.

    Raises BudgetError where they do not, with the smallest limit that was measured to hold.
    """
    least = _least_time(planned.sites, case.terms, planned.recipe)
    planned = planned.under(case.terms.tightened({**tight, "latency": least * (1 + STEP)}))
    limit = _of_time(case)
    found = _tried(case, _session(case, _shapes(case, planned)), limit, LAST_TRIES, SECONDS, RUNS)
    if _taken(limit, found) <= 1:
        watch.say(f"the smallest ranks in every layer, predicted to be too slow, are {float(found['ratio']):.2f}x as fast")
        return planned
    taken, whole = float(found["min_b_ms"]), replace(case.terms.whole, latency=float(found["min_a_ms"]))
    raise BudgetError(
        f"budget {limit.text!r}: the smallest ranks in every layer take {amount(taken, 'latency')}, {float(found['ratio']):.2f}x "
        f"as fast as the original: the smallest budget that can be met is {nearest(limit, taken, whole)}"
    )


def _comparable(case: Case, planned: Planned) -> bool:
    """Whether nobody has said how fast the network is to be, and that can be told and changed."""
    settings, free = case.settings, planned.plan.chosen().keys() - case.terms.choices.keys()
    told = "latency" in case.terms.metrics or settings.rank_multiple is not None
    return bool(free) and not told and settings.provider == "cpu" and case.original.whole and case.original.timed


def _no_slower(case: Case, planned: Planned, watch: Watch) -> Planned:
    """`planned`, or where that would be slower than the original, or far behind a cut in MACs that was asked for, what is not, if
    that loses little more."""
    found = _timed(case, _shapes(case, planned), GLANCE)
    ratio, cut = float(found["ratio"]), case.terms.whole.macs / max(1, planned.plan.cost.macs)
    goals = _goals(case, ratio, cut)
    if float(found["min_a_ms"]) < SHORT or not goals:
        return planned
    if float(found["spread"]) > UNSTEADY:
        spread = f"times on this machine spread by {100 * float(found['spread']):.0f} %"
        watch.say(f"whether these ranks make it slow is not told: {spread}")
        return planned
    limited, fault = "macs" in case.terms.metrics, "get slower" if goals[0][0] == 1 else "gain little"
    slow = f"{ratio:.2f}x as fast as the original" + (f" for {cut:.2f}x fewer MACs" if limited else "")
    watch.say(f"these ranks would make it {slow}: its layers are timed, to spare those that would {fault}")
    timed, reason = timed_terms(case.settings, case.model, case.seen, _sample(case), case.terms, watch), ""
    for goal, worth in goals:
        named = "as fast as the original" if goal == 1 else f"{goal:.2f}x as fast"
        terms = as_fast(timed, goal)
        try:
            quick = _limited(replace(case, terms=terms), planned.afresh(terms), watch)
        except BudgetError:
            reason = f"no ranks within the budget are {named}: the file will be smaller, and {slow}"
            continue
        lost, more = planned.loss(), quick.loss()
        if more <= worth * lost:
            return replace(quick, plan=replace(quick.plan, cost=replace(quick.plan.cost, latency=None)))
        asked = ",".join(limit.text for limit in terms.budget.limits)
        reason = (
            f"ranks {named} would lose {more:.2g}, and these lose {lost:.2g}: it will be {slow} "
            f"(a limit of time beside the budget, as in --budget {asked}, has them)"
        )
    watch.say(reason)
    return planned


def _goals(case: Case, ratio: float, cut: float) -> list[tuple[float, float]]:
    """How many times as fast as the original a plan should be that is now `ratio` times as fast, and how many times more it may
    lose for that; what is wanted most comes first."""
    goals, near = [], NEAR * cut
    if "macs" in case.terms.metrics and ratio < BEHIND * cut and near > 1:
        # As much as cutting MACs further would cost at least: of trained networks the loss grows with the cut to the power of 2.5
        # or more (`batude-onnx plan models/resnet20-cifar10.onnx --sweep`).
        goals.append((near, (near / ratio) ** 2))
    if ratio * SLOWER < 1:
        goals.append((1.0, WORTH))
    return goals


def _shapes(case: Case, planned: Planned) -> ir.Model:
    """A network of the planned shapes, its weights without meaning."""
    sites = {site.key: site for site in planned.sites}
    return speed.skeleton(case.model, {key: (sites[key], ranks) for key, ranks in planned.plan.chosen().items()})


def faster(case: Case, planned: Planned, share: float) -> Planned:
    """As much less than `planned` as it takes to need 1 / `share` of its time; raises BudgetError where there is no such plan."""
    tight = {limit.metric: float(planned.plan.cost.of(limit.metric)) for limit in case.budget.limits if limit.metric in MEASURED}
    # A file that has been seen to be small enough grows no more.
    return planned.under(case.terms.tightened({**tight, "latency": _tighter(planned, "latency", tight["latency"], share)}))


def _tighter(planned: Planned, metric: str, limit: float, share: float) -> float:
    """A limit for a plan that takes `share` times too much under this one.

    Below what that plan was predicted to take, too: the next one would else be the same, as costs go in steps.
    """
    return min(limit / share, float(planned.plan.cost.of(metric)) * (1 - STEP))


def _over(case: Case, limit: Limit, shapes: ir.Model, planned: Planned, watch: Watch) -> float:
    """What a network takes as a share of what `limit` allows."""
    if limit.metric == "size":
        return file_bytes(shapes) / limit.limit
    found = _timed(case, shapes, SECONDS)
    predicted, real = float(planned.plan.cost.of("latency")), float(found["min_b_ms"])
    watch.say(
        f"time predicted: {predicted:.3f} ms, measured: {real:.3f} ms ({100 * (predicted / real - 1):+.0f} %), "
        f"{float(found['ratio']):.2f}x as fast as the original"
    )
    return _taken(limit, found) * (1 + MARGIN)


def _timed(case: Case, shapes: ir.Model, seconds: float) -> Latency:
    """How fast a network is, measured for so long in turns with the original."""
    return compare_latency(case.original, _session(case, shapes), _sample(case), runs=RUNS, seconds=seconds)


def _session(case: Case, shapes: ir.Model) -> Session:
    return open_graph(shapes, case.settings.provider, case.settings.threads)


def _taken(limit: Limit, found: Latency) -> float:
    """The time of the second of two models as a share of what `limit` allows."""
    return float(found["min_b_ms"]) / limit.limit if limit.ratio is None else limit.ratio / float(found["ratio"])


def held(case: Case, session: Session) -> Latency:
    """How fast the finished file is, measured at length: the minima of all tries count. Raises TooSlowError where it is not fast
    enough."""
    limit = _of_time(case)
    found = _tried(case, session, limit, TRIES, LONG_SECONDS, LONG_RUNS)
    if _taken(limit, found) <= 1:
        return found
    spread = f"spread {100 * float(found['spread']):.0f} %"
    raise TooSlowError(
        f"the finished file takes {amount(float(found['min_b_ms']), 'latency')}, {float(found['ratio']):.2f}x as fast as the "
        f"original ({spread}), the budget {limit.text!r} allows {amount(limit.limit, 'latency')}; nothing was written",
        _taken(limit, found),
    )


def _of_time(case: Case) -> Limit:
    return next(limit for limit in case.budget.limits if limit.metric == "latency")


def _tried(case: Case, session: Session, limit: Limit, tries: int, seconds: float, runs: int) -> Latency:
    """How fast a network is, measured for so long in turns with the original, until it keeps `limit`, or so often: the minima of
    all tries count."""
    found: Latency = {}
    for _ in range(tries):
        found = _together(found, compare_latency(case.original, session, _sample(case), runs=runs, seconds=seconds))
        if _taken(limit, found) <= 1:
            break
    return found


def _together(before: Latency, now: Latency) -> Latency:
    """Two measurements as one; medians and the spread are of the later."""
    if not before:
        return now
    shortest = {name: min(float(before[name]), float(now[name])) for name in ("min_a_ms", "min_b_ms")}
    ratio = shortest["min_a_ms"] / shortest["min_b_ms"]
    return {**now, **shortest, "ratio": ratio, "runs": int(before["runs"]) + int(now["runs"])}


def _sample(case: Case) -> Feeds:
    return sample_of(case.settings, case.seen, case.original, case.feeds)
