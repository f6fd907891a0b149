"""One stretch of gradient descent, the same for BC-ADL and for fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from batude_onnx.errors import TrainingError
from batude_onnx.importer import GraphNet
from batude_onnx.training.averaging import Average
from batude_onnx.training.batches import Batches
from batude_onnx.training.losses import Objective
from batude_onnx.training.optimizers import at_rate, optimizers
from batude_onnx.training.precision import autocast
from batude_onnx.training.recipe import Phase, Recipe
from batude_onnx.training.statistics import is_classifier
from batude_onnx.training.taps import Taps


@dataclass(frozen=True)
class Progress:
    """Where a run stands; running means since this epoch began. `agreement` is with the labels, else with the teacher, in %."""

    phase: str
    step: int
    steps: int
    epoch: int
    epochs: float
    loss: float
    agreement: float | None
    cost: int | None
    gap: float | None
    seconds: float

    def row(self) -> Mapping[str, float | int | str]:
        """For the history file; entries that do not apply are left out."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in fields.items() if value is not None}


Report = Callable[[Progress], None]


class Hooks:
    """What BC-ADL adds to plain training; the base class adds nothing."""

    def before(self, step: int, progress: float) -> None:
        """Called before each mini-batch; `progress` of this stretch runs from 0 to 1."""

    def gradients(self) -> Iterable[tuple[nn.Parameter, Tensor]]:
        """Added to the gradients of the loss before each step."""
        return ()

    def cost(self) -> int | None:
        """What the network would cost if it were decomposed now, in units of the budget."""
        return None

    def gap(self) -> float | None:
        """How far the weights are from their low-rank copies."""
        return None


def channels_last(net: nn.Module) -> None:
    """Lay 2-D kernels out as the batches lie in memory: a forward pass on a CPU takes two thirds of the time."""
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _float(outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Losses are computed in float32."""
    return tuple(output.float() if output.is_floating_point() else output for output in outputs)


def _hits(outputs: Sequence[Tensor], teacher: Sequence[Tensor] | None, labels: Tensor | None) -> int | None:
    if not is_classifier(outputs):
        return None
    target = labels if labels is not None else (None if teacher is None else teacher[0].argmax(1))
    return None if target is None else int((outputs[0].argmax(1) == target).sum())


def step_of(
    net: GraphNet, teacher: GraphNet, objective: Objective, x: Tensor, labels: Tensor | None, keys: Sequence[str] = ()
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...] | None]:
    """Loss, outputs, and those of the teacher where it is needed, of one mini-batch; the inputs of the `keys` may count."""
    target = None
    keys = keys if objective.features else ()
    with autocast(x.device.type), Taps(net, keys) as ours, Taps(teacher, keys) as theirs:
        if objective.needs_teacher(labels is not None):
            with torch.no_grad():
                target = _float(teacher(x))
        outputs = _float(net(x))
    loss = objective(outputs, target, labels)
    if keys:
        loss = loss + objective.apart(ours.values, theirs.values)
    return loss, outputs, target


def train(
    net: GraphNet,
    teacher: GraphNet,
    batches: Batches,
    recipe: Recipe,
    phase: Phase,
    *,
    name: str,
    epochs: float,
    report: Report,
    hooks: Hooks | None = None,
    seconds: float | None = None,
    keys: Sequence[str] = (),
) -> list[Mapping[str, float | int | str]]:
    """Train `net` for `epochs`, or for `seconds` of wall-clock time where they are given; gives back one row of history for each
    epoch.

    `keys` are the layers whose inputs the objective may compare. Rates and penalties follow progress, which is counted in
    steps or in time. Raises TrainingError when the loss stops being finite.
    """
    hooks = hooks or Hooks()
    steps, done = batches.steps_in(epochs), 0.0
    movers = optimizers(net, phase.lr, phase.turn, recipe.momentum, recipe.nesterov, recipe.weight_decay)
    history: list[Mapping[str, float | int | str]] = []
    step, began = 0, time.monotonic()
    channels_last(net)
    channels_last(teacher)
    teacher.eval()
    average = Average(net, phase.average) if phase.average else None
    while done < 1:
        # Nothing but BatchNorm acts unlike in training.
        net.train(recipe.restore)
        total, hits, seen, first = 0.0, 0, 0, step
        for x, labels in batches.shuffled():
            if done >= 1:
                break
            at_rate(movers, phase.rate(done, step / len(batches), steps))
            hooks.before(step, done)
            loss, outputs, target = step_of(net, teacher, recipe.objective, x, labels, keys)
            net.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            for parameter, added in hooks.gradients():
                parameter.grad = added.clone() if parameter.grad is None else parameter.grad + added
            for mover in movers:
                mover.step()
            if average is not None:
                average.add(step + 1, steps)
            value = float(loss.detach())
            if value != value or value in (float("inf"), float("-inf")):
                raise TrainingError(f"the loss became {value} in step {step + 1} of {name}: check the data, or lower the budget")
            total, seen, step = total + value, seen + len(x), step + 1
            passed = time.monotonic() - began
            done = step / steps if seconds is None else min(1.0, passed / seconds)
            if seconds is not None:
                steps = max(step, round(step / done))
            right = _hits(outputs, target, labels)
            hits += right or 0
            last = Progress(
                phase=name,
                step=step,
                steps=steps,
                epoch=(step - 1) // len(batches) + 1,
                epochs=epochs if seconds is None else steps / len(batches),
                loss=total / (step - first),
                agreement=None if right is None else 100.0 * hits / seen,
                cost=hooks.cost(),
                gap=hooks.gap(),
                seconds=passed,
            )
            report(last)
        history.append(last.row())
    if average is not None:
        average.put()
    net.eval()
    return history
