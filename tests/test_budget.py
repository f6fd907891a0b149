"""The two rank solvers against exhaustive search."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batude_onnx.budget import Choice, Frontier, Gains, Losses, Terms, frontier, parse_budget, solve, solve_greedy
from batude_onnx.budget.terms import wasteful
from batude_onnx.decomposition import dense_cost, method_of
from batude_onnx.errors import BudgetError
from batude_onnx.records import Alignment, Budget, Cost, FloatArray, Limit, RankPlan, Site
from tests.small_models import site

# The problems: sites, what each rank adds and what each choice loses, from random weights' spectra.

SHAPES = [
    ((4, 4, 3, 3), 1),
    ((4, 3, 3, 3), 1),
    ((3, 4, 3, 3), 1),
    ((2, 2, 3, 3), 1),
    ((8, 4, 3, 3), 2),
    ((5, 4, 5), 1),
    ((6, 2, 2), 1),
    ((7, 6, 1, 1), 1),
    ((6, 6), 1),
    ((4, 9), 1),
]


def problem(shapes: Sequence[tuple[tuple[int, ...], int]], seed: int) -> tuple[list[Site], Gains, Losses, Cost]:
    """Sites on maps of random sizes with random spectra, and the whole network's cost, which also has a fixed part."""
    rng = np.random.default_rng(seed)
    sites: list[Site] = []
    gains: dict[str, list[FloatArray]] = {}
    losses: dict[str, FloatArray] = {}
    for number, (shape, groups) in enumerate(shapes):
        positions = int(rng.integers(1, 30))
        made = site(f"s{number}", shape, groups=groups, positions=positions, input_positions=positions * int(rng.integers(1, 4)))
        sites.append(made)
        sizes = (shape[0] // groups, shape[1])
        modes = method_of(made).modes
        energy = rng.exponential(size=[sizes[mode] for mode in modes])
        for axis, mode in enumerate(modes):
            decay = np.exp(-float(rng.uniform(0.2, 1.5)) * np.arange(sizes[mode]))
            energy = energy * decay.reshape([-1 if axis == other else 1 for other in range(len(modes))])
        kept = energy
        for axis in range(len(modes)):
            kept = kept.cumsum(axis)
        losses[made.key] = np.maximum(energy.sum() - kept, 0.0)
        gains[made.key] = [np.sort(rng.exponential(size=sizes[mode]))[::-1] for mode in modes]
    dense = [dense_cost(made) for made in sites]
    return sites, gains, losses, sum(dense, start=Cost(37, 210))


def on(limit: Limit, whole: Cost) -> Terms:
    return Terms(Budget((limit,)), whole)


def price(made: Site, choice: Choice, metric: str) -> int:
    cost = dense_cost(made) if choice is None else method_of(made).cost(made, choice)
    return int(cost.of(metric))


def fixed_cost(whole: Cost, sites: Sequence[Site]) -> Cost:
    return Cost(whole.params - sum(made.params for made in sites), whole.macs - sum(made.macs for made in sites))


def drawn(made: Site, table: FloatArray, metric: str) -> Frontier:
    terms = on(Limit(metric, 0, ""), Cost(0, 0))
    return frontier(table, terms.prices(made, metric), terms.allowed(made))


def options(made: Site, metric: str) -> list[Choice]:
    """Every choice worth considering: whole, and all ranks that cost less than that and are not wasteful."""
    most = method_of(made).max_ranks(made.shape, made.geometry.groups)
    ranks = product(*(range(1, bound + 1) for bound in most))
    fits = [choice for choice in ranks if price(made, choice, metric) < price(made, None, metric) and not wasteful(made, choice)]
    fits = [choice for choice in fits if price(made, choice, "macs") <= price(made, None, "macs")]
    return [None, *fits]


def limits(sites: Sequence[Site], whole: Cost, metric: str) -> tuple[int, int]:
    """The least that the network can cost, and what it costs now."""
    least = sum(min(price(made, choice, metric) for choice in options(made, metric)) for made in sites)
    return fixed_cost(whole, sites).of(metric) + least, whole.of(metric)


def loss_of(made: Site, table: FloatArray, choice: Choice) -> float:
    return 0.0 if choice is None else float(table[tuple(rank - 1 for rank in choice)])


def total_loss(sites: Sequence[Site], losses: Losses, plan: RankPlan) -> float:
    return sum(loss_of(made, losses[made.key], plan.ranks[made.key]) for made in sites)


def exhaustive(sites: Sequence[Site], losses: Losses, budget: Limit, whole: Cost) -> float:
    """The least loss that any choice within the budget has."""
    prices, lost = np.array([fixed_cost(whole, sites).of(budget.metric)]), np.zeros(1)
    for made in sites:
        every = options(made, budget.metric)
        prices = np.add.outer(prices, [price(made, choice, budget.metric) for choice in every]).ravel()
        lost = np.add.outer(lost, [loss_of(made, losses[made.key], choice) for choice in every]).ravel()
    return float(lost[prices <= budget.limit].min())


def check(plan: RankPlan, sites: Sequence[Site], budget: Limit, whole: Cost) -> None:
    """What every plan must hold, counted anew."""
    cost = fixed_cost(whole, sites)
    assert set(plan.ranks) == {made.key for made in sites}
    for made in sites:
        choice = plan.ranks[made.key]
        cost = cost + (dense_cost(made) if choice is None else method_of(made).cost(made, choice))
        assert choice in options(made, budget.metric)
    assert plan.cost == cost
    assert cost.of(budget.metric) <= budget.limit


@settings(max_examples=150, deadline=None)
@given(
    shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=5),
    seed=st.integers(0, 10**6),
    metric=st.sampled_from(["params", "macs"]),
    share=st.floats(0, 1),
)
def test_plans_are_within_the_budget_and_make_sense(
    shapes: list[tuple[tuple[int, ...], int]], seed: int, metric: str, share: float
) -> None:
    sites, gains, losses, whole = problem(shapes, seed)
    least, most = limits(sites, whole, metric)
    budget = Limit(metric, least + int(share * (most - least)), "any")
    check(solve_greedy(sites, gains, on(budget, whole)), sites, budget, whole)
    check(solve(sites, losses, on(budget, whole)), sites, budget, whole)


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_an_unreachable_budget_names_the_smallest_that_can_be_met(metric: str) -> None:
    sites, gains, losses, whole = problem(SHAPES[:4], 3)
    solvers: list[Callable[[Limit], RankPlan]] = [
        lambda budget: solve_greedy(sites, gains, on(budget, whole)),
        lambda budget: solve(sites, losses, on(budget, whole)),
    ]
    for solver in solvers:
        with pytest.raises(BudgetError, match=r"the smallest ranks in every layer already take") as caught:
            solver(parse_budget([f"{metric}=1"], whole).limits[0])
        least = str(caught.value).rsplit(" ", 1)[-1]
        met = parse_budget([least], whole).limits[0]
        plan = solver(met)
        check(plan, sites, met, whole)
        assert plan.cost.of(metric) == met.limit
        with pytest.raises(BudgetError):
            solver(Limit(metric, met.limit - 1, "less"))


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_at_the_original_size_every_layer_stays_whole(metric: str) -> None:
    sites, gains, losses, whole = problem(SHAPES, 4)
    budget = parse_budget([f"{metric}=1x"], whole).limits[0]
    for plan in (solve_greedy(sites, gains, on(budget, whole)), solve(sites, losses, on(budget, whole))):
        assert plan.chosen() == {}
        assert plan.cost == whole
    less = Limit(metric, budget.limit - 1, "less")
    assert solve(sites, losses, on(less, whole)).chosen()


def test_a_layer_whose_maps_are_unknown_stays_whole_under_macs() -> None:
    made = site("s", (8, 8, 3, 3), positions=0, input_positions=0)
    plan = solve([made], {"s": np.ones((8, 8))}, on(Limit("macs", 10, "10"), Cost(576, 10)))
    assert plan.ranks == {"s": None}


def test_wasteful_ranks_are_not_bought() -> None:
    """Kernel 2: with R2 = 1 no R1 above 2 can be filled, though the table of a truncated HOSVD may say otherwise."""
    made = site("s", (6, 4, 2))
    assert [r1 for r1 in range(1, 7) if not wasteful(made, (r1, 1))] == [1, 2]
    table = np.add.outer(np.arange(5.0, -1.0, -1.0), np.zeros(4))
    budget, whole = Limit("params", 36, "36"), Cost(48, 48)
    assert price(made, (4, 1), "params") == 36
    assert solve([made], {"s": table}, on(budget, whole)).ranks == {"s": (2, 1)}
    gains = {"s": [np.array([9.0, 8, 7, 6, 5, 4]), np.array([3.0, 2, 1, 0])]}
    assert solve_greedy([made], gains, on(budget, whole)).ranks == {"s": (2, 3)}


def test_greedy_switches_on_in_the_order_of_the_singular_values() -> None:
    """Two 6x6 matrices, 12 weights a rank, fixed part 0: at 48 weights four ranks, the four largest of both together."""
    sites = [site("a", (6, 6)), site("b", (6, 6))]
    gains = {"a": [np.array([9.0, 5, 4, 1, 1, 1])], "b": [np.array([3.0, 2.5, 2, 1, 1, 1])]}
    whole = Cost(72, 72)
    ranks = {
        limit: dict(solve_greedy(sites, gains, on(Limit("params", limit, ""), whole)).ranks) for limit in (24, 36, 48, 59, 60, 72)
    }
    assert ranks[24] == {"a": (1,), "b": (1,)}
    assert ranks[36] == {"a": (2,), "b": (1,)}
    # The third rank of `a` would cost as much as the whole matrix, 36: so it is kept whole.
    assert ranks[48] == ranks[59] == {"a": None, "b": (1,)}
    assert ranks[60] == {"a": None, "b": (2,)}
    assert ranks[72] == {"a": None, "b": None}
    swapped = {"a": gains["b"], "b": gains["a"]}
    assert solve_greedy(sites, swapped, on(Limit("params", 48, ""), whole)).ranks == {"a": (1,), "b": None}


def literal_greedy(sites: Sequence[Site], gains: Gains, budget: Limit, whole: Cost) -> tuple[dict[str, Choice], int, float]:
    """Algorithm 1, line 4, from the one sorted list of all singular values: the ranks, how many values were on when one first
    did not fit, and that value. For layers in which no rank is wasteful and rank 1 is worth it."""
    ranks: dict[str, Choice] = {made.key: (1,) * len(gains[made.key]) for made in sites}
    left = budget.limit - fixed_cost(whole, sites).of(budget.metric)
    left -= sum(price(made, ranks[made.key], budget.metric) for made in sites)
    every = [
        (-float(value), made.key, mode, r)
        for made in sites
        for mode, k in enumerate(gains[made.key])
        for r, value in enumerate(k)
    ]
    switched, refused = 0, 0.0
    for value, key, mode, r in sorted(every):
        made, now = next(made for made in sites if made.key == key), ranks[key]
        if r == 0 or now is None or now[mode] != r:
            continue
        more: Choice = tuple(rank + (index == mode) for index, rank in enumerate(now))
        dearer = price(made, more, budget.metric) >= price(made, None, budget.metric)
        if dearer or price(made, more, "macs") > price(made, None, "macs"):
            more = None
        step = price(made, more, budget.metric) - price(made, now, budget.metric)
        if step <= left:
            left, ranks[key] = left - step, more
            switched += not refused
        elif not refused:
            refused = -value
    return ranks, switched, refused


def sum_on(gains: Gains, ranks: dict[str, Choice]) -> tuple[float, int]:
    """Eq. 15's objective, and how many singular values are switched on beyond the first of each mode."""
    total, number = 0.0, 0
    for key, modes in gains.items():
        choice = ranks[key]
        for mode, values in enumerate(modes):
            rank = len(values) if choice is None else choice[mode]
            total, number = total + float(values[:rank].sum()), number + rank - 1
    return total, number


def test_greedy_is_the_literal_one_and_its_gap_to_the_optimum_is_bounded() -> None:
    """Greedy is not optimal: it looks at gains, not at prices. What holds is that no choice with as few singular values on as
    it had when one first did not fit has a larger sum, and each that the optimum has more is at most the refused one.

    Measured here: on 60 problems of 3x3 kernels it reaches at least 95 % of the optimal sum, 99.1 % on average, and it is short
    of the optimum in 28 of them.
    """
    shares = []
    for seed in range(60):
        sites, gains, _, whole = problem([SHAPES[0], SHAPES[1], SHAPES[2]], seed)
        least, most = limits(sites, whole, "params")
        budget = Limit("params", (2 * least + most) // 3, "any")
        ranks = dict(solve_greedy(sites, gains, on(budget, whole)).ranks)
        literal, switched, refused = literal_greedy(sites, gains, budget, whole)
        assert ranks == literal
        reached, _ = sum_on(gains, ranks)
        best, room = 0.0, budget.limit - fixed_cost(whole, sites).params
        for choices in product(*(options(made, "params") for made in sites)):
            if sum(price(made, choice, "params") for made, choice in zip(sites, choices, strict=True)) > room:
                continue
            total, number = sum_on(gains, {made.key: choice for made, choice in zip(sites, choices, strict=True)})
            assert total <= reached + refused * max(0, number - switched) + 1e-9
            best = max(best, total)
        shares.append(reached / best)
    assert max(shares) <= 1 + 1e-12
    assert min(shares) > 0.9
    assert np.mean(shares) > 0.97
    assert sum(share < 1 - 1e-9 for share in shares) > 20


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_the_solver_finds_the_optimum(metric: str) -> None:
    for seed in range(60):
        shapes = [SHAPES[(seed + k) % len(SHAPES)] for k in (0, 3, 7)]
        sites, _, losses, whole = problem(shapes, seed)
        least, most = limits(sites, whole, metric)
        budget = Limit(metric, least + (most - least) * (seed % 9 + 1) // 10, "any")
        reached = total_loss(sites, losses, solve(sites, losses, on(budget, whole)))
        assert reached == pytest.approx(exhaustive(sites, losses, budget, whole), abs=1e-12)


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_frontier_is_the_optimum_where_the_budget_meets_a_breakpoint(metric: str) -> None:
    met = 0
    for seed in range(12):
        sites, _, losses, whole = problem([SHAPES[(seed + k) % len(SHAPES)] for k in (0, 2, 6)], seed)
        fronts = [drawn(made, losses[made.key], metric) for made in sites]
        segments = []
        for front in fronts:
            prices, lost = np.diff(front.prices[front.hull]), np.diff(front.losses[front.hull])
            segments += list(zip((lost / prices).tolist(), prices.tolist(), strict=True))
        limit = limits(sites, whole, metric)[0]
        for _, step in sorted(segments):
            limit += step
            budget = Limit(metric, limit, "breakpoint")
            plan = solve(sites, losses, on(budget, whole))
            assert plan.cost.of(metric) == limit
            assert total_loss(sites, losses, plan) == pytest.approx(exhaustive(sites, losses, budget, whole), abs=1e-12)
            met += 1
    assert met > 60


def test_a_frontier_holds_what_nothing_beats_and_its_hull_is_convex() -> None:
    sites, _, losses, _ = problem(SHAPES, 11)
    for made, metric in product(sites, ["params", "macs"]):
        front = drawn(made, losses[made.key], metric)
        points = [(price(made, choice, metric), loss_of(made, losses[made.key], choice)) for choice in options(made, metric)]
        best = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
        assert set(zip(front.prices.tolist(), front.losses.tolist(), strict=True)) == best
        for index in range(len(front.prices)):
            choice = front.choice(index)
            assert (price(made, choice, metric), loss_of(made, losses[made.key], choice)) in best
        slopes = np.diff(front.losses[front.hull]) / np.diff(front.prices[front.hull])
        assert (np.diff(slopes) > 0).all()
        line = np.interp(front.prices, front.prices[front.hull], front.losses[front.hull])
        assert (front.losses >= line - 1e-12).all()
        assert {front.hull[0], front.hull[-1]} == {0, len(front.prices) - 1}


def test_greedy_buying_by_gain_for_its_price_would_differ() -> None:
    """The twin of the two solvers: a dear rank of large gain goes first for one, not for the other."""
    sites = [site("dear", (20, 20)), site("cheap", (4, 9))]
    spectrum = {"dear": np.array([3.0, 2, 1.9, *[0.1] * 17]), "cheap": np.array([3.0, 1.9, 0.1, 0.1])}
    losses = {key: values.sum() - values.cumsum() for key, values in spectrum.items()}
    whole, budget = Cost(436, 436), Limit("params", 40 + 13 + 45, "98")
    assert solve_greedy(sites, {key: [values] for key, values in spectrum.items()}, on(budget, whole)).ranks["dear"] == (2,)
    assert solve(sites, losses, on(budget, whole)).ranks == {"dear": (1,), "cheap": None}


def test_150_layers_of_256_channels_are_solved_in_a_second() -> None:
    rng = np.random.default_rng(0)
    sites = [site(f"s{k}", (256, 256, 3, 3), positions=196, input_positions=196) for k in range(150)]
    assert prod(sites[0].shape) == 589_824
    losses = {}
    for made in sites:
        energy = np.outer(np.sort(rng.exponential(size=256))[::-1], np.sort(rng.exponential(size=256))[::-1]) ** 2
        energy *= rng.uniform(0.5, 1.5, energy.shape)
        losses[made.key] = np.maximum(energy.sum() - energy.cumsum(0).cumsum(1), 0.0) / energy.sum()
    whole = Cost(sum(made.params for made in sites), sum(made.macs for made in sites))
    budget = parse_budget(["2.5x"], whole).limits[0]
    began = time.process_time()
    plan = solve(sites, losses, on(budget, whole))
    # 0.5 s of processor time on one core; the margin is for slower and busy ones.
    assert time.process_time() - began < 2.0
    assert 0.999 * budget.limit < plan.cost.params <= budget.limit


def test_no_block_is_left_over_where_whole_blocks_are_taken() -> None:
    """Of four that are computed together; a single block, or one of a few, has no others to go with."""
    ranks = np.arange(1, 8 * 18 + 1)

    def blocks(alignment: Alignment, most: int) -> list[int]:
        fits = np.asarray(alignment.fits(ranks, most))
        assert np.array_equal(fits, [alignment.fits(int(rank), most) for rank in ranks])
        return [rank // 8 for rank in ranks[fits].tolist() if rank % 8 == 0]

    every = list(range(1, 19))
    assert blocks(Alignment(8, 0, even=True), 256) == [count for count in every if count not in (5, 9, 13, 17)]
    assert blocks(Alignment(8, 0), 256) == every
    # Whoever says of what they are to be multiples gets all of them; so do modes too small for whole blocks.
    assert blocks(Alignment(8, 512, even=True), 256) == every
