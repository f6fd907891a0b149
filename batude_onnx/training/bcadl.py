"""BC-ADL, Algorithm 1 of BATUDE (Yin et al., AAAI 2022).

    min  loss(W) + ||Z1_(1)||_* + ||Z2_(2)||_*    s.t.   W = Z1,  W = Z2,  P(R1, R2) <= beta                    (Eq. 9-10)

over all layers at once; M1, M2 are the multipliers and lambda the penalty of the augmented Lagrangian (Eq. 11). One iteration:

    V_k = W + M_k / lambda
    ranks from the singular values of unfold_k(V_k), all layers at once, under the budget                       (Eq. 15-17)
    Z_k <- nearest tensor to V_k of that rank                                                                   (Eq. 13-14)
    W   <- SGD on  grad loss + sum_k  M_k + lambda (W - Z_k)                                                    (Eq. 18-19)
    M_k <- M_k + lambda (W - Z_k)                                                                               (Eq. 20)

Eq. 19 as printed has lambda/2; the gradient of the Lagrangian has lambda, which is what is used here. How ranks are chosen
and what "nearest" means are the two `Rules`; the algorithm itself is the same for all recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from batude_onnx.records import RankPlan

Copies = tuple[Tensor, ...]


class Rules(Protocol):
    """The two choices that a recipe makes."""

    def copies(self, key: str) -> int:
        """How many copies Z_k the layer is split into."""

    def ranks(self, v: Mapping[str, Copies]) -> RankPlan:
        """The ranks that V asks for under the budget (Eq. 15-17)."""

    def nearest(self, key: str, v: Copies, ranks: tuple[int, ...]) -> Copies:
        """For each copy the nearest tensor of these ranks (Eq. 13-14)."""


@dataclass(frozen=True)
class State:
    """Z and M of each layer; a layer that the plan leaves whole is its own Z and has no multiplier."""

    z: Mapping[str, Copies]
    m: Mapping[str, Copies]
    plan: RankPlan | None = None


def init(w: Mapping[str, Tensor], rules: Rules) -> State:
    """Z = W, M = 0."""
    z = {key: (weight.clone(),) * rules.copies(key) for key, weight in w.items()}
    return State(z, {key: tuple(part.new_zeros(part.shape) for part in parts) for key, parts in z.items()})


def update_z(w: Mapping[str, Tensor], state: State, penalty: float, rules: Rules, *, frozen: bool = False) -> State:
    """Eq. 13-17. `frozen` keeps the ranks of the last iteration. A layer whose ranks change starts again from M = 0, because its
    multiplier belongs to another constraint; the paper is silent on this."""
    v = {key: tuple(w[key] + m / penalty for m in state.m[key]) for key in w}
    plan = state.plan if frozen and state.plan is not None else rules.ranks(v)
    z, duals = dict(state.z), dict(state.m)
    for key, ranks in plan.ranks.items():
        if state.plan is not None and state.plan.ranks[key] != ranks:
            v[key] = (w[key],) * rules.copies(key)
            duals[key] = tuple(part.new_zeros(part.shape) for part in state.m[key])
        z[key] = v[key] if ranks is None else rules.nearest(key, v[key], ranks)
    return State(z, duals, plan)


def gradient(w: Mapping[str, Tensor], state: State, penalty: float) -> dict[str, Tensor]:
    """What Eq. 19 adds to the gradient of the loss: sum_k M_k + lambda (W - Z_k); nothing for a layer left whole."""
    assert state.plan is not None
    added = {}
    for key in state.plan.chosen():
        pairs = zip(state.m[key], state.z[key], strict=True)
        added[key] = sum((m + penalty * (w[key] - z) for m, z in pairs), start=w[key].new_zeros(w[key].shape))
    return added


def update_m(w: Mapping[str, Tensor], state: State, penalty: float) -> State:
    """Eq. 20."""
    assert state.plan is not None
    m = dict(state.m)
    for key in state.plan.chosen():
        pairs = zip(state.m[key], state.z[key], strict=True)
        m[key] = tuple(dual + penalty * (w[key] - z) for dual, z in pairs)
    return State(state.z, m, state.plan)


def gap(w: Mapping[str, Tensor], state: State) -> float:
    """How far W is from its copies Z_k: the relative distance (root mean square over k) of all chosen layers together.

    Zero: decomposing changes nothing.
    """
    assert state.plan is not None
    chosen = state.plan.chosen()
    if not chosen:
        return 0.0
    away = sum(float((w[key] - z).square().sum()) / len(state.z[key]) for key in chosen for z in state.z[key])
    whole = sum(float(w[key].square().sum()) for key in chosen)
    return (away / whole) ** 0.5 if whole else 0.0
