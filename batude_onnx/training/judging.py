"""Whether training has helped: a network against the one that it started from, both held against the teacher.

A network that starts very near to its teacher can be pushed away from it: a few steps move every weight by more than is to be
gained. Then what it started from is the better result.
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


def apart(net: GraphNet, teacher: GraphNet, samples: Sequence[Tensor], objective: Objective) -> float:
    """How far the outputs of `net` are from the teacher's: mean over the batches of `samples`, in units of `objective`."""
    net.eval()
    teacher.eval()
    with torch.no_grad():
        return sum(float(step_of(net, teacher, objective, x, None)[0]) for x in samples) / len(samples)


def kept_if_better(
    net: GraphNet, teacher: GraphNet, samples: Sequence[Tensor], objective: Objective, train: Callable[[], Told]
) -> tuple[Told, str | None]:
    """What `train`, which changes `net`, gives back; and where it took `net` away from its teacher, a sentence that says so.

    `net` is then what it was. An objective without a teacher is taken at its word.
    """
    if not objective.distill:
        return train(), None
    before, start = apart(net, teacher, samples, objective), {name: value.clone() for name, value in net.state_dict().items()}
    told = train()
    after = apart(net, teacher, samples, objective)
    if after <= before:
        return told, None
    net.load_state_dict(start)
    return told, (
        f"training took the outputs away from the original's ({before:.3g} to {after:.3g}): what the fit in closed form gave is "
        "kept; more data or epochs may help"
    )
