"""Whether training has helped: a network against the one that it started from, both by what training was to lower.

A network that starts very near to its teacher can be pushed away from it: a few steps move every weight by more than is to be
gained. Then what it started from is the better result. Both are held against samples as they come in training, augmented and with
their labels: the start was fitted to the teacher on samples as they are, and there it stays the nearer even where training has
made the network more accurate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import TypeVar

import torch
from torch import Tensor

from batude_onnx.importer import GraphNet
from batude_onnx.records import Judged
from batude_onnx.training.loop import step_of
from batude_onnx.training.losses import Objective
from batude_onnx.training.statistics import is_classifier, logits_of

# What a squared norm is at least.
LEAST = 1e-12

Told = TypeVar("Told")
Trial = Sequence[tuple[Tensor, "Tensor | None"]]


def loss_of(net: GraphNet, teacher: GraphNet, trial: Trial, objective: Objective) -> float:
    """The mean of `objective` over the batches of `trial`: inputs, and labels where there are any."""
    net.eval()
    teacher.eval()
    with torch.no_grad():
        return sum(float(step_of(net, teacher, objective, x, labels)[0]) for x, labels in trial) / len(trial)


def distance_of(net: GraphNet, teacher: GraphNet, trial: Trial) -> float:
    """The norm of what lies between the outputs of both, as a share of that of the teacher's; logits without what all of a row
    have in common, since no answer depends on it."""
    net.eval()
    teacher.eval()
    apart, whole = 0.0, 0.0
    with torch.no_grad():
        for x, _ in trial:
            found, wanted = net(x), teacher(x)
            if is_classifier(wanted):
                logits = (logits_of(found[0]), logits_of(wanted[0]))
                found, wanted = ((each - each.mean(1, keepdim=True),) for each in logits)
            for ours, theirs in zip(found, wanted, strict=True):
                if not theirs.is_floating_point():
                    continue
                known = theirs.isfinite() & ours.isfinite()
                apart += float((ours - theirs)[known].float().square().sum())
                whole += float(theirs[known].float().square().sum())
    return sqrt(apart / max(whole, LEAST))


def kept_if_better(
    net: GraphNet, teacher: GraphNet, trial: Trial, objective: Objective, train: Callable[[], Told]
) -> tuple[Told, Judged | None]:
    """What `train`, which changes `net`, gives back; and its loss on `trial` before and after.

    Where that has not helped, `net` is what it was. An objective without a teacher is taken at its word, and not judged.
    """
    if not objective.distill:
        return train(), None
    before, start = loss_of(net, teacher, trial, objective), {name: value.clone() for name, value in net.state_dict().items()}
    told = train()
    judged = Judged(before, loss_of(net, teacher, trial, objective))
    if not judged.helped:
        net.load_state_dict(start)
    return told, judged
