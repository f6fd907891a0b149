"""The training loop, and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from batude_onnx.decomposition import method_of
from batude_onnx.errors import TrainingError
from batude_onnx.importer import GraphNet
from batude_onnx.records import Cost, RankPlan
from batude_onnx.training.batches import Batches
from batude_onnx.training.compressing import decompose, harvest, learn_ranks
from batude_onnx.training.loop import Hooks, Progress, train
from batude_onnx.training.losses import Objective
from batude_onnx.training.normalisation import restorable, restore
from batude_onnx.training.recipe import RECIPES, Phase, Recipe
from tests.importer_graphs import imported
from tests.small_models import a_layer_without_gradient, floats, linear_model, network, output, rewritten, sites_of, terms

TUNE = replace(RECIPES["default"], batch=32, weight_decay=0.0)


def run(
    net: GraphNet, teacher: GraphNet, batches: Batches, recipe: Recipe = TUNE, lr: float = 0.05, epochs: float = 4.0, **more: Any
) -> tuple[list[Progress], list[Mapping[str, float | int | str]]]:
    steps: list[Progress] = []
    rows = train(net, teacher, batches, recipe, Phase(lr), name="tuning", epochs=epochs, report=steps.append, **more)
    return steps, rows


def labelled() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """128 inputs of 5 classes that a small network can tell apart: each class has a mean of its own."""
    labels = np.random.default_rng(0).integers(0, 5, 128)
    return floats(128, 3, 8, 8) * 0.5 + floats(5, 3, 8, 8, seed=1)[labels], labels


@pytest.mark.parametrize("distill", [0.0, 0.5])
def test_training_lowers_the_loss_and_says_how(distill: float) -> None:
    x, y = labelled()
    net, teacher = imported(network()), imported(network())
    recipe = replace(TUNE, objective=Objective(distill=distill))
    steps, rows = run(net, teacher, Batches(x, y, batch=32), recipe, lr=0.1, epochs=9.5)
    assert not net.training
    assert [row["epoch"] for row in rows] == list(range(1, 11))
    assert [step.step for step in steps] == list(range(1, 39))
    assert all(step.steps == 38 for step in steps)
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])
    assert float(rows[-1]["agreement"]) > 80 > float(rows[0]["agreement"])
    assert "cost" not in rows[0]
    # Running means begin anew with each epoch.
    with torch.no_grad():
        outputs = net(torch.from_numpy(x))
        loss = float(recipe.objective(outputs, teacher(torch.from_numpy(x)), torch.from_numpy(y)))
    assert loss == pytest.approx(float(rows[-1]["loss"]), rel=0.25)


def test_without_labels_the_student_comes_to_the_teacher() -> None:
    teacher, net = imported(network(0)), imported(network(1))
    steps, rows = run(net, teacher, Batches(labelled()[0], batch=32), epochs=25, lr=0.1)
    assert float(rows[-1]["loss"]) < 0.2 * float(rows[0]["loss"])
    assert steps[0].agreement is not None
    assert float(rows[-1]["agreement"]) > 90


def test_the_same_seed_gives_the_same_weights() -> None:
    def trained(seed: int) -> Tensor:
        x, y = labelled()
        net = imported(network())
        run(net, imported(network()), Batches(x, y, batch=32, seed=seed), epochs=2)
        return net.weight("w1").detach()

    first, again, other = trained(0), trained(0), trained(1)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other, atol=1e-5)


def test_a_diverging_loss_ends_the_run() -> None:
    x, y = labelled()
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) in step \d+ of tuning"):
        run(imported(network()), imported(network()), Batches(x, y, batch=32), lr=1e30, epochs=20)
    x[5, 0, 0, 0] = np.nan
    with pytest.raises(TrainingError, match=r"the loss became nan in step \d+ of tuning"):
        run(imported(network()), imported(network()), Batches(x, y, batch=32), epochs=1)


@pytest.mark.parametrize("name", ["batude", "paper"])
def test_diverging_weights_end_bcadl_with_the_same_error(name: str) -> None:
    """A singular value decomposition of what is not finite would end in torch's own error instead."""
    x, y = labelled()
    model = network()
    sites = [found for found in sites_of(model) if found.method]
    recipe = replace(RECIPES[name], solve_every=1, bcadl=Phase(lr=1e18, decay_epochs=100), batch=32)
    whole = Cost(sum(found.params for found in sites), 0)
    rules = recipe.rules(sites, terms(whole.params // 2, whole), {}, {})
    net, teacher = imported(model), imported(model)
    with pytest.raises(TrainingError, match=r"finite|loss became"):
        learn_ranks(
            net, teacher, sites, Batches(x, y, batch=32), recipe, rules, metric="params", epochs=10, report=lambda _: None
        )


class _Pull(Hooks):
    """Adds the same gradient to one weight in each step."""

    def __init__(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        self.parameter, self.steps = parameter, list[tuple[int, float]]()

    def before(self, step: int, progress: float) -> None:
        self.steps.append((step, progress))

    def gradients(self) -> list[tuple[nn.Parameter, Tensor]]:
        return [(self.parameter, torch.ones_like(self.parameter))]

    def cost(self) -> int:
        return 123

    def gap(self) -> float:
        return 0.5


def test_a_stretch_of_so_many_seconds_follows_the_clock() -> None:
    """It ends when they have passed, whatever the epochs, and progress has then gone from 0 to nearly 1."""
    x, y = labelled()
    net = imported(network())
    hooks = _Pull(net.weight("w1"))
    steps: list[Progress] = []
    rows = train(
        net, imported(network()), Batches(x, y, batch=32), TUNE, Phase(1e-6),
        name="n", epochs=1000.0, report=steps.append, hooks=hooks, seconds=1.0,
    )  # fmt: skip
    assert 1.0 <= steps[-1].seconds < 1.5
    progress = [done for _, done in hooks.steps]
    assert progress[0] == 0
    assert progress == sorted(progress)
    assert 0.5 < progress[-1] < 1
    assert steps[-1].steps == steps[-1].step
    assert rows[-1]["epochs"] == steps[-1].step / len(Batches(x, y, batch=32))


@pytest.mark.parametrize("name", ["w", "u"])
def test_hooks_are_asked_in_each_step(name: str) -> None:
    """Inputs of zero leave the loss at its minimum, so that a weight moves by the hook's gradient alone; u's layer only feeds an
    ArgMax, and has no gradient of its own."""
    model = a_layer_without_gradient()
    net = imported(model)
    start = {other: net.weight(other).detach().clone() for other in ("w", "u")}
    hooks = _Pull(net.weight(name))
    recipe = replace(TUNE, momentum=0.0, nesterov=False)
    batches = Batches(np.zeros((8, 4, 5, 5), dtype=np.float32), batch=4)
    rates = Phase(0.1, decay_epochs=99)
    steps: list[Progress] = []
    train(net, imported(model), batches, recipe, rates, name="n", epochs=1.5, report=steps.append, hooks=hooks)
    for other, before in start.items():
        torch.testing.assert_close(net.weight(other).detach(), before - (0.3 if other == name else 0.0))
    assert hooks.steps == [(0, 0.0), (1, 1 / 3), (2, 2 / 3)]
    assert (steps[-1].row()["cost"], steps[-1].row()["gap"]) == (123, 0.5)


# What comes out.


def test_harvest_returns_every_weight_that_training_changed() -> None:
    x, y = labelled()
    model = network()
    net, sites = imported(model), sites_of(model)
    restore(net, restorable(sites), [torch.from_numpy(x)])
    plan = RankPlan({"c1": (3, 2), "c2": None, "c3": None, "c4": (4, 4), "y": (3,)}, Cost(0, 0))
    decompose(net, sites, plan, {})
    run(net, imported(model), Batches(x, y, batch=32), epochs=2)
    history = ({"epoch": 1},)
    result = harvest(net, sites, plan, history)
    assert (result.plan, result.history) == (plan, history)
    assert set(result.chains) == {"c1", "c4", "y"}
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    changed = {name for name, value in result.weights.items() if not np.array_equal(value, stored[name])}
    assert changed == {"w2", "b2", "w3"}
    assert all(result.weights[name].shape == stored[name].shape for name in changed)
    # Nothing that was replaced is written back, and each chain is of the ranks that were planned.
    assert not {"w1", "b1", "w4", "b4", "w5", "b5"} & set(result.weights)
    for found in sites:
        ranks = plan.ranks[found.key]
        if ranks is not None:
            assert result.chains[found.key].weights == method_of(found).cost(found, ranks).params
    finished = rewritten(model, result.chains, weights=result.weights, biases=result.biases)
    with torch.no_grad():
        wanted = net(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(output(finished, x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("op", "attributes"), [("Gemm", {}), ("Gemm", {"transB": 1}), ("MatMul", {})])
def test_linear_layers_learn_in_the_orientation_in_which_they_are_stored(op: str, attributes: dict[str, Any]) -> None:
    """BC-ADL pulls a 5 x 9 layer towards rank 1 and harvest writes it back as the file holds it."""
    u, v = np.linalg.qr(floats(5, 5)).Q, np.linalg.qr(floats(9, 5)).Q
    weight = (u * np.array([4, 1.5, 1, 0.5, 0.25], dtype=np.float32)) @ v.T
    stored = np.ascontiguousarray(weight if attributes else weight.T)
    model = linear_model(op, stored, floats(5) if op == "Gemm" else None, **attributes)
    sites, x = sites_of(model), floats(64, 9)
    net, teacher = imported(model), imported(model)
    recipe = replace(RECIPES["default"], penalty=(0.1, 1.0), bcadl=Phase(0.1), solve_every=5, batch=16)
    rules = recipe.rules(sites, terms(14 + 5, Cost(50, 0)), {}, {})
    plan, _ = learn_ranks(
        net, teacher, sites, Batches(x, batch=16), recipe, rules, metric="params", epochs=40, report=lambda _: None
    )
    assert plan.ranks == {"y": (1,)}
    values = torch.linalg.svdvals(net.weight("w").detach())
    assert float(values[1] / values[0]) < 0.05  # from 1.5 / 4
    decompose(net, sites, plan, {})
    finished = rewritten(model, harvest(net, sites, plan).chains)
    with torch.no_grad():
        np.testing.assert_allclose(output(finished, x), net(torch.from_numpy(x))[0].numpy(), rtol=1e-5, atol=1e-5)
