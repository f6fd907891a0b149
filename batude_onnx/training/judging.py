"""Whether training has helped: a network against the one that it started from, both by what training was to lower.

A network that starts very near to its teacher can be pushed away from it: a few steps move every weight by more than is to be
gained. Then what it started from is the better result. Both are held against samples as they come in training, augmented and with
their labels: the start was fitted to the teacher on samples as they are, and there it stays the nearer even where training has
made the network more accurate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from batude_onnx.importer import GraphNet
from batude_onnx.records import Judged
from batude_onnx.training.loop import step_of
from batude_onnx.training.losses import Objective

Told = TypeVar("Told")
Trial = Sequence[tuple[Tensor, "Tensor | None"]]


def loss_of(net: GraphNet, teacher: GraphNet, trial: Trial, objective: Objective) -> float:
    """The mean of `objective` over the batches of `trial`: inputs, and labels where there are any."""
    net.eval()
    teacher.eval()
    with torch.no_grad():
        return sum(float(step_of(net, teacher, objective, x, labels)[0]) for x, labels in trial) / len(trial)


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
