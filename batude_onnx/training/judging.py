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
) -> tuple[Told, str | None]:
    """What `train`, which changes `net`, gives back; and where that raised its loss on `trial`, a sentence that says so.

    `net` is then what it was. An objective without a teacher is taken at its word.
    """
    if not objective.distill:
        return train(), None
    before, start = loss_of(net, teacher, trial, objective), {name: value.clone() for name, value in net.state_dict().items()}
    told = train()
    after = loss_of(net, teacher, trial, objective)
    if after <= before:
        return told, None
    net.load_state_dict(start)
    return told, (
        f"training raised the loss that it was to lower ({before:.3g} to {after:.3g}): what the fit in closed form gave is kept; "
        "more data or epochs may help"
    )
