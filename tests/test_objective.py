"""What is trained towards: losses of outputs and of features."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from batude_onnx.training.loop import step_of
from batude_onnx.training.losses import Objective
from batude_onnx.training.taps import Taps
from tests.importer_graphs import imported
from tests.small_models import floats, network


def test_cross_entropy_and_divergence_by_hand() -> None:
    """Student log(1, 3), teacher log(9, 1), label 1, T = 2 and a = 0.9.

    CE = -log(3/4). At T = 2 the student says (1, sqrt 3) / (1 + sqrt 3) and the teacher (3, 1) / 4, so that
    KL = 3/4 log(3/4 / p1) + 1/4 log(1/4 / p2).
    """
    student, teacher = torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[9.0, 1.0]]).log()
    root = math.sqrt(3)
    p = 1 / (1 + root), root / (1 + root)
    kl = 0.75 * math.log(0.75 / p[0]) + 0.25 * math.log(0.25 / p[1])
    objective, label = Objective(distill=0.9, temperature=2.0), torch.tensor([1])
    assert float(objective([student], [teacher], label)) == pytest.approx(-0.1 * math.log(0.75) + 0.9 * 4 * kl, rel=1e-6)
    assert float(objective([student], [teacher], None)) == pytest.approx(4 * kl, rel=1e-6)
    assert float(objective([student], None, label)) == pytest.approx(-math.log(0.75), rel=1e-6)
    assert float(objective([student], [student], None)) == pytest.approx(0.0, abs=1e-7)
    # The mean over the batch, not the sum.
    assert float(objective([student.repeat(5, 1)], [teacher.repeat(5, 1)], None)) == pytest.approx(4 * kl, rel=1e-6)


def test_outputs_of_no_classifier_are_compared_in_the_teachers_variance() -> None:
    teacher = torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]])  # variance 20/3
    student = teacher + torch.tensor([[[1.0, -1.0]], [[2.0, 0.0]]])  # mean square 6/4
    whole = torch.arange(4)
    assert float(Objective()([student], [teacher], None)) == pytest.approx(1.5 * 3 / 20)
    assert float(Objective()([student, student * 2, whole], [teacher, teacher * 2, whole], None)) == pytest.approx(
        2 * 1.5 * 3 / 20
    )


@pytest.mark.parametrize(("distill", "labelled", "needed"), [(0.9, True, True), (0.0, True, False), (0.0, False, True)])
def test_the_teacher_is_asked_only_where_it_counts(distill: float, labelled: bool, needed: bool) -> None:
    assert Objective(distill=distill).needs_teacher(labelled) is needed


def test_a_model_that_ends_in_a_softmax_is_taken_as_its_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    objective = Objective()
    of_logits = objective([student], [teacher], labels)
    of_probabilities = objective([student.softmax(1)], [teacher.softmax(1)], labels)
    torch.testing.assert_close(of_probabilities, of_logits, rtol=1e-5, atol=1e-6)
    # Scores that only happen to be positive are no probabilities.
    assert not torch.isclose(objective([student.abs()], [teacher.abs()], labels), of_logits)


def test_features_are_compared_layer_by_layer_and_hooks_are_taken_off() -> None:
    """The distance is relative to the teacher's own, averaged over layers; without a weight nothing is watched."""
    net, teacher = imported(network(0)), imported(network(1))
    x = torch.from_numpy(floats(8, 3, 8, 8))
    objective = Objective(distill=1.0, features=2.0)
    with torch.no_grad():
        plain, outputs, target = step_of(net, teacher, replace(objective, features=0.0), x, None, ["c2", "c3"])
        found, *_ = step_of(net, teacher, objective, x, None, ["c2", "c3"])
        with Taps(net, ["c2", "c3"]) as ours, Taps(teacher, ["c2", "c3"]) as theirs:
            net(x)
            teacher(x)
    assert target is not None
    assert len(outputs) == 1
    assert set(ours.values) == {"c2", "c3"}
    away = [
        float((ours.values[key] - theirs.values[key]).square().sum() / theirs.values[key].square().sum()) for key in ours.values
    ]
    assert float(found - plain) == pytest.approx(2.0 * sum(away) / 2, rel=0.05)  # bfloat16, where the machine has it
    assert all(not net.step(key)._forward_pre_hooks for key in ("c2", "c3"))
    with torch.no_grad():
        same, *_ = step_of(net, net, objective, x, None, ["c2", "c3"])
    assert float(same) == pytest.approx(0.0, abs=1e-4)
