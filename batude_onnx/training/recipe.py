"""The settings of a run, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import cos, pi

from batude_onnx.decomposition import Metric
from batude_onnx.records import Budget, Cost, Site
from batude_onnx.training.bcadl import Rules
from batude_onnx.training.losses import Objective
from batude_onnx.training.rules import MeasuredRules, PaperRules
from batude_onnx.training.sensitivity import Curve


@dataclass(frozen=True)
class Phase:
    """One stretch of training: its peak learning rate and how it moves. `progress` runs from 0 to 1."""

    lr: float
    warmup: float = 0.2
    decay_epochs: int | None = None

    def rate(self, progress: float, epoch: float) -> float:
        """One cycle of cosines (Smith & Topin, 2018); or, with `decay_epochs`, a tenth each time so many epochs have passed."""
        if self.decay_epochs is not None:
            return float(self.lr * 0.1 ** int(epoch / self.decay_epochs))
        if progress < self.warmup:
            return self.lr * (0.04 + 0.96 * (1 - cos(pi * progress / self.warmup)) / 2)
        return self.lr * (1e-4 + (1 - 1e-4) * (1 + cos(pi * (progress - self.warmup) / (1 - self.warmup))) / 2)


RulesMaker = Callable[[Sequence[Site], Budget, Cost, Mapping[str, Metric], Mapping[str, Curve]], Rules]


@dataclass(frozen=True)
class Recipe:
    """How a network is compressed.

    `rules`: how ranks are chosen and weights projected. `measures`: whether the moments of each layer's inputs and gradients,
    and the damage that its truncation does, are measured first. `formats`: whether each layer is factored by the method that
    loses least of it, or all by the first one that applies. `share`: part of all epochs that goes to
    BC-ADL, the rest fine-tunes the factors. `penalty`: lambda at the start and at the end of BC-ADL, geometric in between, so
    that it reaches its end in a run of any length. `solve_every`: mini-batches from one Z to the next; in a short run they are
    fewer, so that there are `least_solves` of them. `freeze`: progress of
    BC-ADL after which ranks stay. `refit`: factors re-fitted in closed form after decomposing.
    """

    name: str
    rules: RulesMaker
    measures: bool
    formats: bool
    share: float
    penalty: tuple[float, float]
    solve_every: int
    freeze: float
    refit: bool
    bcadl: Phase
    finetune: Phase
    least_solves: int = 20
    batch: int = 128
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    objective: Objective = field(default_factory=Objective)

    def penalty_at(self, progress: float) -> float:
        """Lambda at `progress` of BC-ADL."""
        start, end = self.penalty
        return float(start * (end / start) ** progress)


RECIPES: dict[str, Recipe] = {}


def register(recipe: Recipe) -> Recipe:
    """Add a recipe; a second one of the same name is a programming error."""
    if recipe.name in RECIPES:
        raise ValueError(f"recipe {recipe.name!r} is registered twice")
    RECIPES[recipe.name] = recipe
    return recipe


register(
    Recipe(
        name="default",
        rules=MeasuredRules,
        measures=True,
        formats=True,
        share=0.2,
        penalty=(0.01, 3.0),
        solve_every=25,
        freeze=0.6,
        refit=True,
        # Both start close to a solution: on held-out images a peak of 0.02 and more threw away what re-fitting had gained.
        bcadl=Phase(lr=0.01),
        finetune=Phase(lr=0.01, warmup=0.1),
    )
)

# Section "Experiments" of the paper: CIFAR-10 settings.
register(
    Recipe(
        name="paper",
        rules=PaperRules,
        measures=False,
        formats=False,
        share=0.5,
        penalty=(1e-3, 1e-3),
        solve_every=1,
        freeze=1.0,
        refit=False,
        bcadl=Phase(lr=0.1, decay_epochs=30),
        finetune=Phase(lr=0.005, decay_epochs=30),
        batch=256,
        nesterov=False,
        objective=Objective(distill=0.0),
    )
)
