"""Algorithm 1 against cases worked out by hand, against autograd of its Lagrangian, and on a teacher of known ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from batude_onnx.decomposition import Metric, method_of
from batude_onnx.importer import import_graph
from batude_onnx.records import Cost, FloatArray, RankPlan, Site
from batude_onnx.training import bcadl
from batude_onnx.training.batches import Batches
from batude_onnx.training.bcadl import Copies
from batude_onnx.training.compressing import current_weights, learn_ranks
from batude_onnx.training.losses import Objective
from batude_onnx.training.recipe import RECIPES, Phase, Recipe, RulesMaker
from batude_onnx.training.rules import MeasuredRules, PaperRules
from tests.loading_models import model_of
from tests.small_models import floats, linear_model, site, sites_of, terms

# Plain gradient descent: no momentum, no decay, a rate that stays.
PLAIN = replace(
    RECIPES["paper"], momentum=0.0, weight_decay=0.0, penalty=(0.5, 0.5), bcadl=Phase(lr=0.1, decay_epochs=1000), batch=4
)


@dataclass(frozen=True)
class Given:
    """Rules that have their ranks told."""

    plan: Mapping[str, tuple[int, ...] | None]
    sites: tuple[Site, ...]
    metric: Metric | None = None

    def copies(self, key: str) -> int:
        return PaperRules(self.sites, terms(0, Cost(0, 0))).copies(key)

    def ranks(self, v: Mapping[str, Copies]) -> RankPlan:
        return RankPlan(self.plan, Cost(0, 0))

    def nearest(self, key: str, v: Copies, ranks: tuple[int, ...]) -> Copies:
        return PaperRules(self.sites, terms(0, Cost(0, 0))).nearest(key, v, ranks)


def diagonal(*values: float) -> Tensor:
    return torch.diag(torch.tensor([float(value) for value in values]))


def test_two_iterations_worked_out_by_hand() -> None:
    """W = diag(4, 2, 1), rank 1, lambda 1/2.

    Z = diag(4, 0, 0) and M = 0, so Eq. 19 adds 1/2 (W - Z) = diag(0, 1, 1/2). Let W then be diag(4, 1.5, 1): Eq. 20 gives
    M = 1/2 diag(0, 1.5, 1) = diag(0, 0.75, 0.5), V = W + 2 M = diag(4, 3, 2), Z = diag(4, 0, 0) again, and Eq. 19 adds
    M + 1/2 (W - Z) = diag(0, 1.5, 1). Last, M = diag(0, 0.75 + 0.75, 0.5 + 0.5) = diag(0, 1.5, 1).
    """
    rules, half = PaperRules([site("a", (3, 3))], terms(6, Cost(9, 9))), 0.5
    w = {"a": diagonal(4, 2, 1)}
    state = bcadl.update_z(w, bcadl.init(w, rules), half, rules)
    assert state.plan is not None
    assert state.plan.ranks == {"a": (1,)}
    torch.testing.assert_close(state.z["a"][0], diagonal(4, 0, 0))
    torch.testing.assert_close(bcadl.gradient(w, state, half)["a"], diagonal(0, 1, 0.5))
    assert bcadl.gap(w, state) == pytest.approx((5 / 21) ** 0.5)

    w = {"a": diagonal(4, 1.5, 1)}
    state = bcadl.update_z(w, bcadl.update_m(w, state, half), half, rules)
    torch.testing.assert_close(state.m["a"][0], diagonal(0, 0.75, 0.5))
    torch.testing.assert_close(state.z["a"][0], diagonal(4, 0, 0))
    torch.testing.assert_close(bcadl.gradient(w, state, half)["a"], diagonal(0, 1.5, 1))
    torch.testing.assert_close(bcadl.update_m(w, state, half).m["a"][0], diagonal(0, 1.5, 1))


def test_multipliers_can_turn_the_direction_that_is_kept() -> None:
    """V, not W, is truncated: W = diag(3, 2, 0) with M = diag(0, 2, 0) and lambda 1 keeps the second direction at 4."""
    rules = Given({"a": (1,)}, (site("a", (3, 3)),))
    w = {"a": diagonal(3, 2, 0)}
    state = bcadl.State({"a": (w["a"],)}, {"a": (diagonal(0, 2, 0),)}, RankPlan({"a": (1,)}, Cost(0, 0)))
    torch.testing.assert_close(bcadl.update_z(w, state, 1.0, rules).z["a"][0], diagonal(0, 4, 0))
    torch.testing.assert_close(bcadl.update_z(w, state, 4.0, rules).z["a"][0], diagonal(3, 0, 0))


def test_each_copy_is_truncated_in_its_own_mode() -> None:
    """Tucker-2 on W(s, c) = [[3, 0], [0, 2], [0, 0]] at two kernel points: Z1 keeps R1 = 1 outputs, Z2 all R2 = 2 inputs."""
    slice_ = torch.tensor([[3.0, 0], [0, 2], [0, 0]])
    w = {"a": torch.stack([slice_, torch.zeros(3, 2)], -1)}
    rules = Given({"a": (1, 2)}, (site("a", (3, 2, 2)),))
    z1, z2 = bcadl.update_z(w, bcadl.init(w, rules), 1.0, rules).z["a"]
    torch.testing.assert_close(z1[..., 0], torch.tensor([[3.0, 0], [0, 0], [0, 0]]))
    torch.testing.assert_close(z2, w["a"])


def test_one_step_of_w_by_hand_through_the_training_loop() -> None:
    """The loss is at its minimum, so that only Eq. 19 moves W: W - 0.1 * 1/2 (W - Z) = diag(4, 1.9, 0.95)."""
    model = linear_model("MatMul", np.diag([4.0, 2.0, 1.0]).astype(np.float32))
    net, teacher = import_graph(ir.from_proto(model)), import_graph(ir.from_proto(model))
    sites = sites_of(model)
    rules = PaperRules(sites, terms(6, Cost(9, 9)))
    batches = Batches(floats(4, 3), batch=4)
    plan, history = learn_ranks(net, teacher, sites, batches, PLAIN, rules, metric="params", epochs=1, report=lambda _: None)
    assert plan.ranks == {"y": (1,)}
    torch.testing.assert_close(net.weight("w").detach(), diagonal(4, 1.9, 0.95))
    # As the row of history says: what 1 rank costs, and how far the moved W is from Z.
    assert history[0]["cost"] == 6
    assert history[0]["gap"] == pytest.approx(((1.9**2 + 0.95**2) / (16 + 1.9**2 + 0.95**2)) ** 0.5)


def test_multipliers_follow_in_the_loop() -> None:
    """Three iterations of the same, with the loss held flat by inputs of zero, against Eq. 13-20 written out for one entry.

    Entry (2, 2) starts at 2 with Z = 0 throughout: M2 = M1 + l w, w' = w - 0.1 (M + l w).
    """
    model = linear_model("MatMul", np.diag([40.0, 2.0, 1.0]).astype(np.float32))
    net, teacher = import_graph(ir.from_proto(model)), import_graph(ir.from_proto(model))
    sites = sites_of(model)
    rules = PaperRules(sites, terms(6, Cost(9, 9)))
    batches = Batches(np.zeros((4, 3), dtype=np.float32), batch=4)
    learn_ranks(net, teacher, sites, batches, PLAIN, rules, metric="params", epochs=3, report=lambda _: None)
    w, m = 2.0, 0.0
    for step in range(3):
        m += 0.5 * w if step else 0.0
        w -= 0.1 * (m + 0.5 * w)
    # 2 -> 1.9 -> 1.71 (M = 0.95) -> 1.444 (M = 1.805), by hand:
    assert w == pytest.approx(1.444)
    torch.testing.assert_close(net.weight("w").detach(), diagonal(40, 1.444, 0.722))


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (5, 4)])
def test_the_gradient_is_that_of_the_augmented_lagrangian(shape: tuple[int, ...]) -> None:
    """Eq. 11: loss + sum_k <M_k, W - Z_k> + lambda/2 |W - Z_k|^2. Its gradient has lambda, not lambda/2 as Eq. 19."""
    torch.manual_seed(0)
    copies, penalty = (2 if len(shape) > 2 else 1), 0.7
    w = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    z, m = (tuple(torch.randn(shape, dtype=torch.float64) for _ in range(copies)) for _ in range(2))
    pairs = list(zip(m, z, strict=True))
    lagrangian = sum((dual * (w - copy)).sum() + penalty / 2 * (w - copy).square().sum() for dual, copy in pairs)
    assert isinstance(lagrangian, Tensor)
    (expected,) = torch.autograd.grad(lagrangian, w)
    state = bcadl.State({"a": z}, {"a": m}, RankPlan({"a": (1,) * copies}, Cost(0, 0)))
    torch.testing.assert_close(bcadl.gradient({"a": w.detach()}, state, penalty)["a"], expected)
    as_printed = sum(dual + penalty / 2 * (w.detach() - copy) for dual, copy in pairs)
    assert isinstance(as_printed, Tensor)
    assert float((as_printed - expected).abs().max()) > 0.1


def test_a_layer_left_whole_is_not_pulled() -> None:
    sites = (site("a", (3, 3)), site("b", (3, 3)))
    rules = Given({"a": (1,), "b": None}, sites)
    w = {"a": diagonal(3, 2, 1), "b": diagonal(3, 2, 1)}
    state = bcadl.update_z(w, bcadl.init(w, rules), 0.5, rules)
    assert set(bcadl.gradient(w, state, 0.5)) == {"a"}
    state = bcadl.update_m(w, state, 0.5)
    assert float(state.m["a"][0].abs().sum()) > 0
    assert not state.m["b"][0].any()
    assert bcadl.gap(w, state) == pytest.approx((5 / 14) ** 0.5)
    nothing = bcadl.update_z(w, bcadl.init(w, rules), 0.5, Given({"a": None, "b": None}, sites))
    assert bcadl.gradient(w, nothing, 0.5) == {}
    assert bcadl.gap(w, nothing) == 0.0


def test_new_ranks_start_without_multipliers_and_the_same_ranks_keep_them() -> None:
    sites = (site("a", (3, 3)), site("b", (3, 3)))
    w = {"a": diagonal(3, 2, 1), "b": diagonal(3, 2, 1)}
    rules = Given({"a": (1,), "b": (1,)}, sites)
    state = bcadl.update_m(w, bcadl.update_z(w, bcadl.init(w, rules), 0.5, rules), 0.5)
    changed = Given({"a": (2,), "b": (1,)}, sites)
    moved = bcadl.update_z(w, state, 0.5, changed)
    assert not moved.m["a"][0].any()
    torch.testing.assert_close(moved.m["b"][0], diagonal(0, 1, 0.5))
    # Z of the first comes from W itself, that of the second from W + 2 M = diag(3, 4, 2).
    torch.testing.assert_close(moved.z["a"][0], diagonal(3, 2, 0))
    torch.testing.assert_close(moved.z["b"][0], diagonal(0, 4, 0))
    # Frozen, the ranks of before stay, whatever the rules say now.
    frozen = bcadl.update_z(w, state, 0.5, changed, frozen=True)
    assert frozen.plan is state.plan
    torch.testing.assert_close(frozen.m["a"][0], diagonal(0, 1, 0.5))


@pytest.mark.parametrize("measured", [False, True])
def test_z_is_nearer_than_any_tensor_of_its_rank_on_a_grid(measured: bool) -> None:
    """2x2 layer, rank 1: every s u v' for 120 directions each and 61 lengths from zero (the zero tensor) up, in the metric."""
    moments = torch.tensor([[[4.0, 1], [1, 1]]]), torch.tensor([[[1.0, -0.5], [-0.5, 2]]])
    metric = Metric.of_moments(*moments, ridge=1e-6) if measured else None
    weight = torch.tensor([[1.0, 0.4], [-0.3, 0.9]])
    few, sites = terms(3, Cost(4, 4)), [site("a", (2, 2))]
    sites = [replace(sites[0], method="svd", reason=None)]
    rules: bcadl.Rules = PaperRules(sites, few)
    if metric is not None:
        rules = MeasuredRules(sites, few, {"a": metric})
    (z,) = rules.nearest("a", (weight,), (1,))
    assert int(torch.linalg.matrix_rank(z, atol=1e-5)) == 1

    def lost(candidates: Tensor) -> Tensor:
        """(..., 2, 2) -> the squared distance in the metric, written out as a trace."""
        away = weight.double() - candidates
        if metric is None:
            return away.square().sum((-1, -2))
        a, g = moments[0][0].double(), moments[1][0].double()
        return torch.einsum("...sc,cd,...td,st->...", away, a, away, g)

    angles = torch.arange(120) * (2 * torch.pi / 120)
    u = torch.stack([angles.cos(), angles.sin()], -1).double()
    lengths = torch.linspace(0, 2, 61, dtype=torch.float64)
    grid = torch.einsum("as,bc,l->ablsc", u, u, lengths)
    assert not grid[:, :, 0].any()
    best = float(lost(grid).min())
    assert float(lost(z.double())) <= best + 1e-6
    assert best - float(lost(z.double())) < 0.01 * float(lost(torch.zeros(2, 2)))


def test_measured_rules_follow_the_metric_and_not_the_scale_of_a_layer() -> None:
    """Scaling a layer, which a BatchNorm would undo, moves the literal ranks and not the measured ones."""
    sites = [site("a", (8, 8)), site("b", (8, 8))]
    few = terms(6 * 16, Cost(128, 128))
    w = {"a": diagonal(8, 7, 3, 2.5, 0.5, 0.4, 0.3, 0.2), "b": diagonal(6, 2, 1, 0.9, 0.8, 0.7, 0.3, 0.2)}
    scaled = {"a": w["a"], "b": w["b"] * 20}
    paper, measured = PaperRules(sites, few), MeasuredRules(sites, few, {})
    as_copies = {name: {key: (value,) for key, value in given.items()} for name, given in (("w", w), ("scaled", scaled))}
    assert paper.ranks(as_copies["w"]).ranks != paper.ranks(as_copies["scaled"]).ranks
    assert measured.ranks(as_copies["w"]).ranks == measured.ranks(as_copies["scaled"]).ranks
    # Inputs that only ever excite the weak directions of `a` make them the ones that count.
    quiet = Metric.of_moments(torch.diag(torch.tensor([1e-6] * 4 + [1.0] * 4))[None], torch.eye(8)[None], ridge=1e-9)
    near = MeasuredRules(sites, few, {"a": quiet}).nearest("a", (w["a"],), (1,))[0]
    assert int(near.abs().argmax()) == 4 * 8 + 4


# A teacher of known ranks.

TRUE = {"h": (2, 3), "y": (4, 2)}
SHAPES = {"h": (8, 6, 3, 3), "y": (10, 8, 3, 3)}


def two_layers(weights: Mapping[str, FloatArray]) -> onnx.ModelProto:
    """x (N, 6, 6, 6) -> Conv h -> Relu -> Conv y, both 3x3 without padding, y strided."""
    nodes = [
        helper.make_node("Conv", ["x", "wh"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "wy"], ["y"], strides=[2, 2]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6, 6, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10, None, None])
    return model_of(nodes, [x], [y], {f"w{key}": weight for key, weight in weights.items()})


def low_rank(shape: tuple[int, ...], ranks: tuple[int, int], seed: int) -> FloatArray:
    """Norm 4, and singular values of each mode that differ little."""
    rng = np.random.default_rng(seed)
    b1 = np.linalg.qr(rng.normal(size=(shape[0], ranks[0]))).Q
    b2 = np.linalg.qr(rng.normal(size=(shape[1], ranks[1]))).Q
    core = rng.normal(size=(ranks[0], ranks[1], 9))
    weight = np.einsum("sr,rqk,cq->sck", b1, core, b2).reshape(shape)
    weight *= 4 / np.linalg.norm(weight)
    scaled: FloatArray = weight.astype(np.float32)
    return scaled


def noisy(weights: Mapping[str, FloatArray], norm: float, seed: int) -> dict[str, FloatArray]:
    rng = np.random.default_rng(seed)
    noise = {key: rng.normal(size=weight.shape) for key, weight in weights.items()}
    return {key: (weights[key] + norm * part / np.linalg.norm(part)).astype(np.float32) for key, part in noise.items()}


STUDENT = Recipe(
    name="test",
    rules=MeasuredRules,
    measures=True,
    formats=False,
    share=1.0,
    penalty=(0.01, 1.0),
    solve_every=5,
    freeze=0.8,
    refit=False,
    bcadl=Phase(lr=0.05),
    finetune=Phase(lr=0.05),
    batch=64,
    weight_decay=0.0,
    objective=Objective(),
)


@pytest.mark.parametrize("kind", [MeasuredRules, PaperRules])
def test_the_ranks_of_a_low_rank_teacher_are_recovered(kind: RulesMaker) -> None:
    """Student: the teacher's weights under noise that hides their ranks; distilled, under the budget of the true ranks.

    Twins: the student's ranks before training are other ones, so are those under a smaller budget, and with hardly any
    penalty the same training leaves W far from low rank.
    """
    true = {key: low_rank(SHAPES[key], TRUE[key], seed) for seed, key in enumerate(SHAPES)}
    # The teacher is not exactly of low rank: 1 % noise.
    teacher = import_graph(ir.from_proto(two_layers(noisy(true, 0.04, 10))))
    start = two_layers(noisy(true, 10.0, 20))
    sites = sites_of(start)
    whole = Cost(sum(made.params for made in sites), sum(made.macs for made in sites))
    costs = [method_of(made).cost(made, TRUE[made.key]) for made in sites]
    spent = costs[0] + costs[1]
    batches = partial(Batches, floats(512, 6, 6, 6, seed=5), batch=64)

    def learn(limit: int, recipe: Recipe) -> tuple[RankPlan, RankPlan, list[float]]:
        net = import_graph(ir.from_proto(start))
        rules = recipe.rules(sites, terms(limit, whole), {}, {})
        weights = current_weights(net, sites)
        before = rules.ranks({key: (weight,) * rules.copies(key) for key, weight in weights.items()})
        gaps: list[float] = []
        plan, _ = learn_ranks(
            net, teacher, sites, batches(), recipe, rules, metric="params", epochs=60, report=lambda p: gaps.append(p.gap or 0.0)
        )
        return before, plan, gaps

    before, plan, gaps = learn(spent.params, replace(STUDENT, rules=kind))
    assert plan.ranks == TRUE
    assert plan.cost == spent
    assert before.ranks != TRUE
    # W comes to its low-rank copies: from far away to what the teacher's own noise leaves.
    assert gaps[0] > 0.4
    assert gaps[-1] < 0.05
    _, smaller, _ = learn(int(0.75 * spent.params), replace(STUDENT, rules=kind))
    assert smaller.ranks != TRUE
    _, _, loose = learn(spent.params, replace(STUDENT, rules=kind, penalty=(1e-9, 1e-9)))
    assert loose[-1] > 0.5
