"""The settings of a run, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import cos, pi

from batude_onnx.budget import Terms
from batude_onnx.decomposition import Method, Metric, alternatives, method_of
from batude_onnx.records import Site
from batude_onnx.training.bcadl import Rules
from batude_onnx.training.losses import Objective
from batude_onnx.training.rules import MeasuredRules, PaperRules
from batude_onnx.training.sensitivity import Curve

# Mini-batches beyond which a longer run needs no larger steps. In one of 15,600 whose peak had grown on (ResNet-20, 2.6x),
# accuracy on the training images fell from 93 to 82 % and took half the run to come back; on held-out images, peaks from 1 to 1.9
# times the one of a thousand steps end alike after 3,500 of them.
LONGEST = 4000


@dataclass(frozen=True)
class Phase:
    """One stretch of training: its peak learning rate and how it moves.

    `lr`: the peak in a run of a thousand mini-batches; it grows with the power `growth` of their number, up to that of `LONGEST`,
    since a short run must stay near to where it starts and a long one need not. `average`: what comes out is an average of the
    weights over about this share of the stretch; 0 takes the last ones. `turn`: the peak of orthogonal steps that weights take,
    as a share of their norm, which moves with `lr`; only biases and normalisation follow `lr` then. 0 moves weights by SGD as
    well. `within`: peaks are at most this share of those that the start bears, which is tried (`stride.py`); 0 does not ask.
    """

    lr: float
    warmup: float = 0.2
    decay_epochs: int | None = None
    growth: float = 0.0
    average: float = 0.0
    turn: float = 0.0
    within: float = 0.0

    def peak(self, steps: int) -> float:
        """The highest rate in a run of `steps` mini-batches."""
        return float(self.lr * (min(steps, LONGEST) / 1000) ** self.growth)

    def times(self, share: float) -> Phase:
        """This stretch with all its steps so many times as long."""
        return replace(self, lr=self.lr * share, turn=self.turn * share)

    def rate(self, progress: float, epoch: float, steps: int) -> float:
        """One cycle of cosines (Smith & Topin, 2018); or, with `decay_epochs`, a tenth each time so many epochs have passed.

        `progress` of the stretch, which has `steps` mini-batches, runs from 0 to 1.
        """
        if self.decay_epochs is not None:
            return float(self.lr * 0.1 ** int(epoch / self.decay_epochs))
        peak = self.peak(steps)
        if progress < self.warmup:
            return peak * (0.04 + 0.96 * (1 - cos(pi * progress / self.warmup)) / 2)
        return peak * (1e-4 + (1 - 1e-4) * (1 + cos(pi * (progress - self.warmup) / (1 - self.warmup))) / 2)


RulesMaker = Callable[[Sequence[Site], Terms, Mapping[str, Metric], Mapping[str, Curve]], Rules]


@dataclass(frozen=True)
class Recipe:
    """How a network is compressed.

    `rules`: how ranks are chosen and weights projected. `measures`: whether the moments of each layer's inputs and gradients,
    and the damage that its truncation does, are measured first. `formats`: whether each layer is factored by the method that
    loses least of it, or all by the first one that applies; `without`: names of methods that are left out of it. `share`: part of
    all epochs that goes to BC-ADL, the rest fine-tunes the factors. `penalty`: lambda at the start and at the end of BC-ADL,
    geometric in between, so that it reaches its end in a run of any length. `solve_every`: mini-batches from one Z to the next;
    in a short run they are fewer, so that there are `least_solves` of them. `freeze`: progress of BC-ADL after which ranks stay.
    `refit`: factors re-fitted in closed form after decomposing. `restore`: BatchNorms normalise by each batch in training, those
    of the graph and one put in where one was folded into a layer; without it all keep the statistics that they came with.
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
    restore: bool = True
    without: tuple[str, ...] = ()
    least_solves: int = 20
    batch: int = 128
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    objective: Objective = field(default_factory=Objective)

    def ways(self, site: Site) -> Sequence[Site]:
        """A compressible site with each method that it may be factored by; in BC-ADL, which projects again and again, each that
        does it in closed form."""
        if not self.formats:
            return (site,)
        return [way for way in alternatives(site) if self.takes(method_of(way))]

    def takes(self, method: Method) -> bool:
        """Whether layers may be factored by `method`, where it applies."""
        return method.name not in self.without and (method.exact or not self.share)

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


# Ranks are solved once and all epochs go to the factors: on held-out images (ResNet-20, 2.6x, 10 epochs) this kept more than
# giving a fifth of them to BC-ADL. In runs of 300 mini-batches the best steps were 0.4 to 0.6 of the longest that three starts
# bore, which were 0.0010, 0.0010 and 0.0047 of the norm. No BatchNorm goes by the batch: next to a near start its noise is most
# of the loss (1.1 in place of 0.13); 2 epochs without it kept more than 10 with it, and at 6.8x it was better, too.
DEFAULT = register(
    Recipe(
        name="default",
        rules=MeasuredRules,
        measures=True,
        formats=True,
        share=0.0,
        penalty=(0.01, 3.0),
        solve_every=25,
        freeze=0.6,
        refit=True,
        bcadl=Phase(lr=0.01, growth=0.5),
        finetune=Phase(lr=0.01, warmup=0.1, growth=0.5, average=0.03, turn=0.003, within=0.5),
        restore=False,
    )
)

# The same, with ranks learned while the dense network trains; what that leaves is truncated, and no near start.
register(replace(DEFAULT, name="batude", share=0.2, finetune=replace(DEFAULT.finetune, within=0.0), restore=True))

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
