"""What a plan promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from batude_onnx.records.budgets import Budget, Cost


@dataclass(frozen=True)
class LayerPlan:
    """What is planned for one layer: ranks and method, or None and the reason; what it costs before and after, and what its
    truncation is predicted to do to the outputs."""

    key: str
    op: str
    method: str | None
    ranks: tuple[int, ...] | None
    reason: str | None
    before: Cost
    after: Cost
    loss: float


@dataclass(frozen=True)
class Step:
    """What another budget would give; None where it cannot be met."""

    budget: str
    predicted: Cost | None
    loss: float | None


@dataclass(frozen=True)
class Tried:
    """One layer alone at `share` of its price or less: the best ranks, and the damage that they do."""

    share: float
    ranks: tuple[int, ...]
    damage: float


@dataclass(frozen=True)
class Outlook:
    """What a plan promises. `loss`: the sum of all layers' damage to the outputs where that was `measured`, else of the shares of
    their weights' energy that is lost."""

    model: str
    budget: Budget
    original: Cost
    predicted: Cost
    loss: float
    measured: bool
    layers: tuple[LayerPlan, ...]
    sweep: tuple[Step, ...] = ()
    sensitivity: Mapping[str, tuple[Tried, ...]] = field(default_factory=dict)
