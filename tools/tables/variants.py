"""The ablations: a recipe with one thing changed. Importing this registers each variant as a recipe.

Most change the default recipe as it was before layers could be factored by CP, steps were as long as the start bears and
BatchNorms kept their statistics, `no-cp`; what these add has groups of its own. All run on a network that was trained without
the held-out images (`models/resnet20-cifar10-dev.onnx`) and are scored on those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from batude_onnx.decomposition import Metric
from batude_onnx.records import RankPlan
from batude_onnx.training.bcadl import Copies
from batude_onnx.training.losses import Objective
from batude_onnx.training.recipe import RECIPES, Recipe, register
from batude_onnx.training.rules import MeasuredRules, PaperRules
from batude_onnx.training.statistics import logits_of
from tools.tables.baselines import EVEN
from tools.tables.rows import Row

MODEL, BUDGET = "resnet20-dev", "2.6x"


@dataclass(frozen=True)
class Group:
    """Variants that answer one question: `names` of recipes, each run for `epochs` with `seeds` at a `budget` of parameters."""

    title: str
    names: tuple[str, ...]
    epochs: float
    seeds: tuple[int, ...] = (0, 1)
    limit: int | None = None
    budget: str = BUDGET

    def rows(self) -> tuple[Row, ...]:
        """In the order in which they are run: every variant once, then every one again."""
        return tuple(Row(MODEL, self.budget, name, self.epochs, seed, self.limit) for seed in self.seeds for name in self.names)


class NormalisedRules(MeasuredRules):
    """Ranks by the share of the plain norm that is lost."""

    def ranks(self, v: Mapping[str, Copies]) -> RankPlan:
        return MeasuredRules(self.sites, self.terms).ranks(v)


class InputRules(MeasuredRules):
    """Ranks by the share of energy lost after whitening by the inputs alone."""

    def ranks(self, v: Mapping[str, Copies]) -> RankPlan:
        metrics = {key: _blind(metric) for key, metric in self.metrics.items()}
        return MeasuredRules(self.sites, self.terms, metrics).ranks(v)


class WhitenedRules(MeasuredRules):
    """Ranks by the share of energy lost after whitening on both sides; no damage is measured."""

    def ranks(self, v: Mapping[str, Copies]) -> RankPlan:
        return MeasuredRules(self.sites, self.terms, self.metrics).ranks(v)


class PlainlyProjectedRules(MeasuredRules):
    """The default's ranks; Z is nearest in the plain norm."""

    def nearest(self, key: str, v: Copies, ranks: tuple[int, ...]) -> Copies:
        return MeasuredRules(self.sites, self.terms).nearest(key, v, ranks)


def _blind(metric: Metric) -> Metric:
    identity = torch.eye(metric.output_root.shape[-1], dtype=metric.output_root.dtype).expand_as(metric.output_root)
    return replace(metric, output_root=identity, output_inverse=identity)


@dataclass(frozen=True)
class Smoothed(Objective):
    """Labels of which the share `smoothing` is spread over all classes (Szegedy et al., CVPR 2016)."""

    smoothing: float = 0.1

    def __call__(self, student: Sequence[Tensor], teacher: Sequence[Tensor] | None, labels: Tensor | None) -> Tensor:
        loss = super().__call__(student, teacher, labels)
        if labels is None:
            return loss
        scores = logits_of(student[0])
        moved = F.cross_entropy(scores, labels, label_smoothing=self.smoothing) - F.cross_entropy(scores, labels)
        return loss + (1 - self.distill if teacher is not None else 1.0) * moved


DEFAULT = RECIPES["default"]
BASE = register(replace(EVEN, name="no-cp", without=("cp",)))


def _variant(base: Recipe, name: str, **changed: Any) -> str:
    register(replace(base, name=name, **changed))
    return name


def _share(share: float, name: str = "share", **changed: Any) -> str:
    return _variant(BASE, f"{name}-{share:g}", share=share, **changed)


SCORES = (
    _variant(EVEN, "score-raw", rules=PaperRules, formats=False),
    _variant(BASE, "score-normalised", rules=NormalisedRules),
    _variant(BASE, "score-inputs", rules=InputRules),
    _variant(BASE, "score-both-sides", rules=WhitenedRules),
    "no-cp",
)
ONE_METHOD = _variant(EVEN, "tucker-only", formats=False)
NO_AVERAGE = _variant(BASE, "no-average", finetune=replace(BASE.finetune, average=0.0))
SGD = tuple(_variant(BASE, f"sgd-{rate:g}", finetune=replace(BASE.finetune, lr=rate, turn=0.0)) for rate in (0.003, 0.01, 0.03))
TURNS = tuple(_variant(BASE, f"turn-{turn:g}", finetune=replace(BASE.finetune, turn=turn)) for turn in (0.0015, 0.006, 0.012))
SHARES = ("batude", _share(0.5))
# Plain factors with larger steps.
FAR = tuple(
    _variant(RECIPES["std-tucker"], f"std-tucker-{turn:g}", finetune=replace(BASE.finetune, turn=turn, lr=turn / 0.3))
    for turn in (0.01, 0.03)
)
NO_REFIT = _variant(BASE, "no-refit", refit=False)

# Ranks as the command line chooses them, to suit the runtime's block of channels, and not as they come.
SUITED = _variant(BASE, "suited-to-runtime")

FEATURES = tuple(_variant(BASE, f"features-{weight:g}", objective=Objective(features=weight)) for weight in (1.0, 10.0))

# The default recipe with BatchNorms that go by the batch and with steps of one length, whatever the start bears.
RESTORED = _variant(EVEN, "restored")
NEXT = tuple(_variant(EVEN, f"restored-turn-{turn:g}", finetune=replace(EVEN.finetune, turn=turn)) for turn in (0.00095, 0.0015))
# Peaks as other shares of the longest steps that the start bears; 0 does not ask.
WITHIN = tuple(
    _variant(DEFAULT, f"within-{share:g}", finetune=replace(DEFAULT.finetune, within=share)) for share in (0.0, 0.25, 1.0)
)  # fmt: skip
# The default recipe as it is, with one thing changed.
CHANGED = (
    _variant(DEFAULT, "default-without-cp", without=("cp",)),
    _variant(DEFAULT, "default-by-the-batch", restore=True),
    _variant(DEFAULT, "default-bc-adl", share=0.2),
    _variant(DEFAULT, "default-sgd", finetune=replace(DEFAULT.finetune, turn=0.0)),
    _variant(DEFAULT, "default-labels-only", objective=Objective(distill=0.0)),
    _variant(DEFAULT, "default-no-average", finetune=replace(DEFAULT.finetune, average=0.0)),
    _variant(DEFAULT, "default-no-refit", refit=False),
)
MORE = (
    _variant(DEFAULT, "default-features-1", objective=Objective(features=1.0)),
    _variant(DEFAULT, "default-batch-64", batch=64),
)

GROUPS = (
    Group("Score of a rank, nothing trained, 600 images", SCORES, 0.0, limit=600),
    Group("Re-fitting, nothing trained, 600 images", (NO_REFIT, "no-cp"), 0.0, limit=600),
    Group("Methods that factor a layer, nothing trained, 600 images", (ONE_METHOD, "no-cp", "default"), 0.0, limit=600),
    Group("Ranks as they come, or suited to the runtime's block of channels", (SUITED, "no-cp"), 2.0),
    Group("Methods that factor a layer, after training", (ONE_METHOD, "no-cp", NEXT[0]), 2.0),
    Group("Part of the epochs that goes to BC-ADL", ("no-cp", *SHARES), 2.0),
    Group("Part of the epochs that goes to BC-ADL, at 6.8x", ("no-cp", *SHARES), 5.0, budget="6.8x"),
    Group("Distillation of what the layers receive: weight", ("no-cp", *FEATURES), 2.0),
    Group("Score of a rank, after training", ("score-raw", "score-both-sides", "no-cp"), 2.0),
    Group("Score of a rank, at 6.8x", ("score-normalised", "score-both-sides", "no-cp"), 5.0, budget="6.8x"),
    Group("Methods that factor a layer, at 6.8x", (ONE_METHOD, "no-cp", RESTORED), 5.0, budget="6.8x"),
    Group("Orthogonal steps, and SGD at three peaks (for 1,000 steps)", ("no-cp", *TURNS[:2], *SGD), 2.0),
    Group("Orthogonal steps, at 6.8x", ("no-cp", *TURNS), 5.0, budget="6.8x"),
    Group("The default recipe itself with one thing changed", ("default", *CHANGED), 2.0),
    Group("Share of the longest steps that the start bears (default 0.5; 0: not asked)", ("default", *WITHIN), 2.0),
    Group("Share of the longest steps that the start bears, at 6.8x", ("default", *WITHIN), 5.0, (0,), budget="6.8x"),
    Group("The default recipe, and with BatchNorms by the batch, whole steps and two lengths", ("default", RESTORED, *NEXT), 2.0),
    Group("The default recipe, and with BatchNorms by the batch", ("default", RESTORED, NEXT[1]), 10.0, (0,)),
    Group("The default recipe, and with BatchNorms by the batch, at 6.8x", ("default", RESTORED, NEXT[1]), 5.0, budget="6.8x"),
    Group("The default recipe itself with one thing changed, at 6.8x", ("default", *MORE), 5.0, budget="6.8x"),
    Group("Rates of a baseline, which starts from plain factors", ("std-tucker", *FAR), 2.0, (0,)),
    Group("BatchNorm restored, or folded as in the file", (_variant(BASE, "folded", restore=False), "no-cp"), 2.0),
    Group("Average of the last weights", (NO_AVERAGE, "no-cp"), 2.0),
    Group(
        "Distillation: weight of the teacher and temperature; label smoothing",
        (
            _variant(BASE, "labels-only", objective=Objective(distill=0.0)),
            _variant(BASE, "teacher-0.5", objective=Objective(distill=0.5)),
            "no-cp",
            _variant(BASE, "teacher-only", objective=Objective(distill=1.0)),
            _variant(BASE, "temperature-2", objective=Objective(temperature=2.0)),
            _variant(BASE, "smoothed", objective=Smoothed()),
            _variant(BASE, "labels-only-smoothed", objective=Smoothed(distill=0.0)),
        ),
        2.0,
    ),
    Group(
        "BC-ADL: penalty, freezing, projection",
        (
            "batude",
            _share(0.2, "stiff", penalty=(1.0, 10.0)),
            _share(0.2, "frozen", freeze=0.0),
            _share(0.2, "plain-z", rules=PlainlyProjectedRules),
        ),
        2.0,
    ),
)  # fmt: skip
