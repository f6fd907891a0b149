"""The loop and its parts: what is trained towards, how fast, on which batches, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from batude_onnx.decomposition import Metric, method_of
from batude_onnx.errors import TrainingError
from batude_onnx.importer import GraphNet
from batude_onnx.records import Budget, Cost, FactorChain, Geometry, LayerSpec, RankPlan
from batude_onnx.training.batches import Augmentation, Batches, takes_any_batch
from batude_onnx.training.chain_module import ChainModule
from batude_onnx.training.compressing import decompose, harvest, learn_ranks
from batude_onnx.training.loop import Hooks, Progress, parameter_groups, step_of, train
from batude_onnx.training.losses import Objective
from batude_onnx.training.normalisation import restorable, restore
from batude_onnx.training.recipe import RECIPES, Phase, Recipe
from batude_onnx.training.statistics import collect_metrics, sampled_loss
from batude_onnx.training.taps import Taps
from tests.importer_graphs import imported
from tests.loading_models import model_of
from tests.small_models import conv_model, floats, linear_model, network, output, rewritten, sites_of

# What is trained towards.


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


# How fast.


def test_one_cycle_rises_to_its_peak_and_falls_to_nothing() -> None:
    phase = Phase(lr=2.0, warmup=0.25)
    assert phase.rate(0.0, 0) == pytest.approx(0.08)
    assert phase.rate(0.125, 0) == pytest.approx(2 * (0.04 + 0.96 / 2))
    assert phase.rate(0.25, 0) == pytest.approx(2.0)
    assert phase.rate(0.625, 0) == pytest.approx(2 * (1e-4 + (1 - 1e-4) / 2))
    assert phase.rate(1.0, 0) == pytest.approx(2e-4)
    rates = [phase.rate(step / 1000, 0) for step in range(1001)]
    assert int(np.argmax(rates)) == 250
    assert (np.diff(rates[:251]) > 0).all()
    assert (np.diff(rates[250:]) < 0).all()
    assert max(abs(np.diff(rates))) < 0.015  # no jump where the halves meet
    assert Phase(lr=2.0, warmup=0.0).rate(0.0, 0) == pytest.approx(2.0)


def test_the_papers_rate_falls_to_a_tenth_every_so_many_epochs() -> None:
    phase = Phase(lr=0.1, decay_epochs=30)
    rates = [phase.rate(0.5, epoch) for epoch in (0, 29.99, 30, 59.9, 60, 90)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.0001])


def test_the_penalty_grows_geometrically_over_a_run() -> None:
    recipe = replace(RECIPES["default"], penalty=(0.01, 1.0))
    assert [recipe.penalty_at(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([0.01, 0.1, 1.0])


def test_only_weights_are_decayed() -> None:
    net = imported(network())
    decayed, plain = parameter_groups(net, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    parameters = dict(net.named_parameters())
    for group, prefix, number in ((decayed, "w", 5), (plain, "b", 4)):
        held = group["params"]
        assert isinstance(held, list)
        assert {id(parameter) for parameter in held} == {id(p) for name, p in parameters.items() if name.startswith(prefix)}
        assert len(held) == number


# On which batches.


def images(n: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(n, 5, 6, 3)."""
    return np.random.default_rng(seed).integers(1, 256, (n, 5, 6, 3)).astype(np.uint8)


def every_variant(image: np.ndarray[Any, Any], shift: int, flip: bool) -> dict[bytes, tuple[int, int, bool]]:
    """The slow way: the image shifted by each (down, right), zeros entering, then each of these mirrored."""
    height, width, _ = image.shape
    variants = {}
    for down in range(-shift, shift + 1):
        for right in range(-shift, shift + 1):
            moved = np.zeros_like(image)
            for row in range(height):
                for column in range(width):
                    if 0 <= row - down < height and 0 <= column - right < width:
                        moved[row, column] = image[row - down, column - right]
            for mirrored in (False, True) if flip else (False,):
                shown = moved[:, ::-1] if mirrored else moved
                variants[np.ascontiguousarray(shown).tobytes()] = (down, right, mirrored)
    return variants


@pytest.mark.parametrize(("shift", "flip"), [(0, True), (1, False), (2, True)])
def test_augmentation_only_shifts_and_mirrors(shift: int, flip: bool) -> None:
    given = images(400)
    given[1:] = given[0]
    augmented = Augmentation(shift, flip)(torch.from_numpy(given), torch.Generator().manual_seed(0)).numpy()
    assert (augmented.shape, augmented.dtype) == (given.shape, given.dtype)
    variants = every_variant(given[0], shift, flip)
    assert len(variants) == (2 * shift + 1) ** 2 * (1 + flip)
    drawn = [variants[image.tobytes()] for image in augmented]  # a KeyError for anything else
    # Every variant turns up, none far too often: the draws are uniform.
    counts = np.array([drawn.count(variant) for variant in variants.values()])
    assert counts.min() > 0
    assert counts.max() < 5 * len(given) / len(variants)


def test_each_image_is_augmented_by_itself() -> None:
    given = images(64)
    augmented = Augmentation(2, True)(torch.from_numpy(given), torch.Generator().manual_seed(1)).numpy()
    kinds = {every_variant(image, 2, True)[shown.tobytes()] for image, shown in zip(given, augmented, strict=True)}
    assert len(kinds) > 25
    assert Augmentation()(torch.from_numpy(given), torch.Generator()).numpy() is not augmented
    np.testing.assert_array_equal(Augmentation()(torch.from_numpy(given), torch.Generator()).numpy(), given)


def test_images_are_scaled_and_normalised_channel_by_channel() -> None:
    given, mean, std = images(7), np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.5])
    batches = Batches(given, np.arange(7), batch=4, mean=mean, std=std)
    parts = list(batches.in_order())
    assert [len(x) for x, _ in parts] == [4, 3]
    x = torch.cat([part for part, _ in parts])
    wanted = ((given / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(x.numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert x.dtype == torch.float32
    assert [int(label) for _, labels in parts if labels is not None for label in labels] == list(range(7))
    assert [len(part) for part, _ in batches.in_order(limit=5)] == [4, 1]


def test_floats_pass_untouched_and_without_labels() -> None:
    given = floats(6, 3, 4, 4)
    batches = Batches(given, batch=2, augmentation=Augmentation(1, True))
    for x, labels in batches.shuffled():
        assert labels is None
        for sample in x.numpy():
            assert any((sample == one).all() for one in given)


def test_an_epoch_holds_each_sample_once_and_repeats_with_its_seed() -> None:
    given, labels = images(50), np.arange(50)

    def epochs(seed: int) -> list[tuple[Tensor, Tensor]]:
        batches = Batches(given, labels, batch=16, augmentation=Augmentation(1, True), seed=seed)
        assert (len(batches), batches.samples) == (3, 50)
        return [(x, y) for _ in range(2) for x, y in batches.shuffled() if y is not None]

    first, again, other = epochs(0), epochs(0), epochs(1)
    assert [len(x) for x, _ in first] == [16] * 6
    for (x, y), (same_x, same_y) in zip(first, again, strict=True):
        torch.testing.assert_close(x, same_x, rtol=0, atol=0)
        torch.testing.assert_close(y, same_y, rtol=0, atol=0)
    orders = [torch.cat([y for _, y in part]).tolist() for part in (first[:3], first[3:], other[:3])]
    assert all(len(set(order)) == 48 for order in orders)
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert not torch.equal(first[0][0], other[0][0])


def test_fewer_samples_than_a_batch_are_one_batch() -> None:
    batches = Batches(images(5), np.arange(5), batch=16)
    assert len(batches) == 1
    assert [len(x) for x, _ in batches.shuffled()] == [5]


def test_a_sample_is_drawn_without_repeats_and_as_it_is() -> None:
    given = images(40)
    batches = Batches(given, batch=16, augmentation=Augmentation(2, True))
    parts = batches.sample(25, seed=3)
    assert [len(part) for part in parts] == [16, 9]
    drawn = {tuple((part[k] * 255).round().flatten().int().tolist()) for part in parts for k in range(len(part))}
    held = {tuple(image.transpose(2, 0, 1).flatten().tolist()) for image in given}
    assert len(drawn) == 25
    assert drawn <= held
    assert [len(part) for part in batches.sample(100)] == [16, 16, 8]
    assert [len(part) for part in Batches(given, batch=16, whole=True).sample(25)] == [16]
    assert torch.equal(parts[0], batches.sample(25, seed=3)[0])
    assert not torch.equal(parts[0], batches.sample(25, seed=4)[0])


def test_whether_a_network_takes_any_batch_is_seen_by_trying() -> None:
    assert takes_any_batch(imported(network()), floats(4, 3, 8, 8))
    for size, wanted in (([4, 12], False), ([-1, 12], True)):
        nodes = [
            helper.make_node("Reshape", ["x", "size"], ["r"]),
            helper.make_node("MatMul", ["r", "w"], ["y"]),
        ]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 3, 4])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 5])
        model = model_of(nodes, [x], [y], {"w": floats(12, 5), "size": np.array(size)})
        assert takes_any_batch(imported(model), floats(4, 3, 4)) is wanted


# The chain as a module.


@pytest.mark.parametrize(
    ("shape", "size", "attributes"),
    [
        ((6, 5, 3, 3), (7, 8), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((6, 5, 2, 3), (7, 8), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
        ((6, 5, 2, 2), (7, 8), {"auto_pad": "SAME_UPPER"}),
        ((6, 5, 3, 3), (7, 8), {"auto_pad": "VALID", "strides": [2, 1]}),
        ((6, 5, 3, 3), (7, 8), {"pads": [0, 2, 1, 0], "strides": [2, 2]}),
        ((6, 5, 3, 3), (7, 8), {"pads": [2, 1, 2, 1], "dilations": [2, 1]}),
        ((8, 3, 3, 3), (7, 8), {"group": 2, "pads": [1, 0, 0, 1]}),
        ((7, 6, 4), (11,), {"pads": [3, 1], "strides": [2]}),
        ((6, 4, 2, 3, 2), (4, 5, 4), {"pads": [1, 0, 0, 0, 2, 1], "strides": [1, 2, 1]}),
        ((6, 4, 2, 3, 2), (4, 5, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2, 3]}),
        ((9, 5, 1, 1), (7, 8), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ],
)
def test_a_chain_computes_what_onnxruntime_computes(
    shape: tuple[int, ...], size: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    weight, bias = floats(*shape), floats(shape[0], seed=1)
    model = conv_model(weight, bias, size, **attributes)
    found = sites_of(model)[0]
    way, groups = method_of(found), found.geometry.groups
    ranks = tuple((rank + 1) // 2 for rank in way.max_ranks(shape, groups))
    chain = way.factor(torch.from_numpy(weight), torch.from_numpy(bias), found.geometry, ranks, None)
    x = floats(2, shape[1] * groups, *size, seed=2)
    module = ChainModule(chain)
    with torch.no_grad():
        wanted = output(rewritten(model, {"y": chain}), x)
        np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), wanted, rtol=1e-5, atol=2e-5)
        # And the layer by itself, as it was.
        dense = ChainModule(FactorChain("one layer", (LayerSpec(weight, bias, found.geometry),)))
        np.testing.assert_allclose(dense(torch.from_numpy(x)).numpy(), output(model, x), rtol=1e-5, atol=2e-5)
        for parameter in module.parameters():
            parameter.mul_(1.1)
        moved = output(rewritten(model, {"y": module.trained()}), x)
        np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), moved, rtol=1e-5, atol=5e-5)
        assert np.abs(moved - wanted).max() > 0.1


def test_a_linear_chain_takes_any_leading_axes() -> None:
    first = LayerSpec(floats(3, 6), None, Geometry.pointwise(0))
    last = LayerSpec(floats(4, 3), floats(4), Geometry.pointwise(0))
    x = torch.from_numpy(floats(2, 5, 6))
    with torch.no_grad():
        y = ChainModule(FactorChain("svd", (first, last)))(x)
    np.testing.assert_allclose(y.numpy(), x.numpy() @ (last.weight @ first.weight).T + floats(4), rtol=1e-5, atol=1e-5)


# What statistics say.


def test_moments_by_a_plain_double_loop() -> None:
    """A and G of one 3x3 layer in two groups, position by position and sample by sample, from autograd of each sample's loss."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], group=2, strides=[2, 2]),
        helper.make_node("Tanh", ["c"], ["t"]),
        helper.make_node("Flatten", ["t"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "d"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 5, 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    held = {"w": floats(6, 2, 3, 3), "b": floats(6), "v": floats(24, 3), "d": floats(3)}
    model = model_of(nodes, [x], [y], held)
    net, sites = imported(model), sites_of(model)
    inputs = [torch.from_numpy(floats(n, 4, 5, 5, seed=n)) for n in (6, 3)]
    ridge = 1e-3
    found = collect_metrics(net, sites, inputs, seed=5, ridge=ridge)

    weight, bias, v, d = (torch.from_numpy(held[name]) for name in ("w", "b", "v", "d"))
    a, g = torch.zeros(2, 2, 2, dtype=torch.float64), torch.zeros(2, 3, 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    for batch in inputs:
        drawn = torch.multinomial((net(batch)[0].detach() / 4).softmax(1), 1, generator=generator)
        for sample, label in zip(batch, drawn, strict=True):
            out = nn.functional.conv2d(sample[None], weight, bias, stride=2, groups=2).requires_grad_()
            logits = out.tanh().flatten(1) @ v + d
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits / 4, label), out)
            for group in range(2):
                for row in range(5):
                    for column in range(5):
                        one = sample[2 * group : 2 * group + 2, row, column].double()
                        a[group] += torch.outer(one, one)
                for row in range(2):
                    for column in range(2):
                        one = gradient[0, 3 * group : 3 * group + 3, row, column].double()
                        g[group] += torch.outer(one, one)
    wanted = Metric.of_moments(a, g, ridge)
    assert set(found) == {"c", "y"}
    for name in ("output_root", "input_root", "output_inverse", "input_inverse"):
        torch.testing.assert_close(getattr(found["c"], name), getattr(wanted, name), rtol=1e-4, atol=1e-5)
    # Each root really is one: squared it is the moment with its ridge.
    damped = a + ridge * a.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None] * torch.eye(2)
    torch.testing.assert_close(found["c"].input_root @ found["c"].input_root, damped, rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not torch.allclose(collect_metrics(net, sites, inputs, seed=6)["c"].output_root, wanted.output_root, rtol=1e-3)


def _with_a_layer_without_gradient() -> onnx.ModelProto:
    """Two convolutions of one input; what u gives only an ArgMax reads."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("Conv", ["x", "u"], ["s"]),
        helper.make_node("ArgMax", ["s"], ["z"], axis=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 5, 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 3, 3])
    z = helper.make_tensor_value_info("z", TensorProto.INT64, ["N", 1, 3, 3])
    return model_of(nodes, [x], [y, z], {"w": floats(4, 4, 3, 3), "u": floats(4, 4, 3, 3, seed=1)})


def test_the_metric_of_a_layer_that_the_loss_does_not_reach_is_left_out() -> None:
    model = _with_a_layer_without_gradient()
    found = collect_metrics(imported(model), sites_of(model), [torch.from_numpy(floats(2, 4, 5, 5))])
    assert set(found) == {"y"}


def test_labels_are_drawn_from_the_softened_prediction() -> None:
    logits = torch.tensor([[0.0, 4 * math.log(3.0)]]).repeat(20_000, 1)
    loss = float(sampled_loss([logits], torch.Generator().manual_seed(0))) / 20_000
    entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    # Three standard errors of 20,000 draws.
    assert loss == pytest.approx(entropy, abs=0.011)


# The loop.

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


@pytest.mark.parametrize("name", ["default", "paper"])
def test_diverging_weights_end_bcadl_with_the_same_error(name: str) -> None:
    """A singular value decomposition of what is not finite would end in torch's own error instead."""
    x, y = labelled()
    model = network()
    sites = [found for found in sites_of(model) if found.method]
    recipe = replace(RECIPES[name], solve_every=1, bcadl=Phase(lr=1e18, decay_epochs=100), batch=32)
    whole = Cost(sum(found.params for found in sites), 0)
    rules = recipe.rules(sites, Budget("params", whole.params // 2, "2x"), whole, {}, {})
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
    model = _with_a_layer_without_gradient()
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
    rules = recipe.rules(sites, Budget("params", 14 + 5, "19"), Cost(50, 0), {}, {})
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
    x = torch.from_numpy(labelled()[0][:8])
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
