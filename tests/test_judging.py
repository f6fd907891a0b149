"""Training that does harm is taken back, and said."""

from __future__ import annotations

import pytest
import torch

from batude_onnx.importer import GraphNet
from batude_onnx.training.judging import kept_if_better, loss_of
from batude_onnx.training.losses import Objective
from tests.importer_graphs import imported
from tests.small_models import floats, network

SAMPLES = [(torch.from_numpy(floats(16, 3, 8, 8)), None), (torch.from_numpy(floats(8, 3, 8, 8, seed=1)), None)]
TEACHER = imported(network())


def moved(net: GraphNet, by: float) -> GraphNet:
    """`net` with every weight moved by a share of itself."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + by)
    return net


def test_what_is_nearer_to_the_teacher_is_kept() -> None:
    net = moved(imported(network()), 0.3)
    told, judged = kept_if_better(net, TEACHER, SAMPLES, Objective(), lambda: moved(net, -0.2))
    assert told is net
    assert judged is not None
    assert judged.helped
    assert judged.trained == loss_of(net, TEACHER, SAMPLES, Objective()) < judged.start
    assert loss_of(net, TEACHER, SAMPLES, Objective()) == pytest.approx(
        loss_of(moved(moved(imported(network()), 0.3), -0.2), TEACHER, SAMPLES, Objective())
    )


def test_what_is_farther_is_taken_back_and_said() -> None:
    net = moved(imported(network()), 0.1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    _, judged = kept_if_better(net, TEACHER, SAMPLES, Objective(), lambda: moved(net, 0.3))
    assert judged is not None
    assert not judged.helped
    assert judged.trained > judged.start == loss_of(net, TEACHER, SAMPLES, Objective())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_is_no_number_is_taken_back() -> None:
    net = moved(imported(network()), 0.1)
    _, judged = kept_if_better(net, TEACHER, SAMPLES, Objective(), lambda: moved(net, float("nan")))
    assert judged is not None
    assert not judged.helped
    assert all(value.isfinite().all() for value in net.state_dict().values())


def test_without_a_teacher_training_is_taken_at_its_word() -> None:
    net = imported(network())
    _, judged = kept_if_better(net, TEACHER, SAMPLES, Objective(distill=0.0), lambda: moved(net, 0.3))
    assert judged is None
    assert loss_of(net, TEACHER, SAMPLES, Objective()) > 0


def test_the_loss_is_the_mean_over_batches() -> None:
    net = moved(imported(network()), 0.2)
    each = [loss_of(net, TEACHER, [one], Objective()) for one in SAMPLES]
    assert loss_of(net, TEACHER, SAMPLES, Objective()) == pytest.approx(sum(each) / 2)
    assert loss_of(TEACHER, TEACHER, SAMPLES, Objective()) == pytest.approx(0.0, abs=1e-6)


def test_labels_count_as_they_do_in_training() -> None:
    """A network that answers as the labels say, where the teacher does not, is the better one only by its labels."""
    teacher, net = imported(network()), imported(network())
    (x, _), *_ = SAMPLES
    net = moved(net, 0.3)
    with torch.no_grad():
        said = net.eval()(x)[0].argmax(1)
    by_labels = Objective(distill=0.01)
    _, judged = kept_if_better(moved(net, -0.3 / 1.3), teacher, [(x, said)], by_labels, lambda: moved(net, 0.3))
    assert judged is not None
    assert judged.helped
    _, judged = kept_if_better(moved(net, -0.3 / 1.3), teacher, [(x, None)], by_labels, lambda: moved(net, 0.3))
    assert judged is not None
    assert not judged.helped
