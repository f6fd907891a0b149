"""What is trained towards: the labels, where there are any, and the original model's own outputs.

    loss = (1 - a) CE(student, labels) + a T^2 KL(softmax(teacher / T) || softmax(student / T))

(Hinton et al., 2015). To this comes b times the distance of what the layers receive from what they receive in the teacher,

    mean over layers of  ||x_student - x_teacher||^2 / ||x_teacher||^2.

Outputs that are no classifier's are compared by their mean squared error, in units of the teacher's
variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from batude_onnx.training.statistics import is_classifier, logits_of


@dataclass(frozen=True)
class Objective:
    """`distill` is the weight a of the teacher where labels exist (1 where they do not), `temperature` is T, `features` is b."""

    distill: float = 0.9
    temperature: float = 4.0
    features: float = 0.0

    def needs_teacher(self, labelled: bool) -> bool:
        return self.distill > 0 or self.features > 0 or not labelled

    def __call__(self, student: Sequence[Tensor], teacher: Sequence[Tensor] | None, labels: Tensor | None) -> Tensor:
        """Mean over the batch; a scalar."""
        if labels is None:
            assert teacher is not None
            return self.distance(student, teacher)
        loss = F.cross_entropy(logits_of(student[0]), labels)
        if teacher is None:
            return loss
        return (1 - self.distill) * loss + self.distill * self.distance(student, teacher)

    def apart(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """b times the mean relative distance of features, by layer; a scalar."""
        parts = []
        for key, ours in student.items():
            theirs = teacher[key].float()
            parts.append((ours.float() - theirs).square().mean() / theirs.square().mean().clamp_min(1e-12))
        return self.features * torch.stack(parts).mean()

    def distance(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """How far outputs are from the teacher's; mean over the batch, a scalar."""
        if is_classifier(student):
            t = self.temperature
            target = (logits_of(teacher[0]) / t).log_softmax(1)
            return t * t * F.kl_div((logits_of(student[0]) / t).log_softmax(1), target, log_target=True, reduction="batchmean")
        total = student[0].new_zeros(())
        for ours, theirs in zip(student, teacher, strict=True):
            if ours.is_floating_point():
                total = total + _relative(ours, theirs)
        return total


def _relative(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared error in units of the variance of what is wanted, or of the square of a single number; over numbers only, as a
    score may be -Inf."""
    known = theirs.isfinite()
    if not bool(known.all()):
        ours, theirs = ours[known], theirs[known]
    if not theirs.numel():
        return ours.new_zeros(())
    scale = theirs.var() if theirs.numel() > 1 else theirs.square().mean()
    return F.mse_loss(ours, theirs) / scale.clamp_min(1e-12)
