"""BatchNorm put back behind folded convolutions and folded away again, down to the written file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.nn import functional as F

from batude_onnx.decomposition import method_of
from batude_onnx.records import Cost, RankPlan, Site
from batude_onnx.training.batches import Batches
from batude_onnx.training.compressing import decompose, harvest
from batude_onnx.training.loop import train
from batude_onnx.training.normalisation import RestoredBatchNorm, fold, restorable, restore
from batude_onnx.training.recipe import RECIPES, Phase
from tests.importer_graphs import imported
from tests.loading_models import model_of
from tests.small_models import conv_model, floats, network, output, rewritten, sites_of


def keys(sites: list[Site]) -> list[str]:
    return [found.key for found in sites]


def seen(*shape: int, seed: int = 0) -> list[Tensor]:
    """Two batches of inputs that are not centred."""
    return [torch.from_numpy(floats(8, *shape, seed=seed + k) * 2 + 0.5) for k in (0, 1)]


@pytest.mark.parametrize(
    ("shape", "size", "attributes"),
    [
        ((6, 5, 3, 3), (6, 7), {}),
        ((8, 2, 3, 3), (6, 7), {"group": 4}),
        ((8, 1, 3, 3), (6, 7), {"group": 8}),
        ((6, 5, 3), (9,), {"strides": [2]}),
        ((4, 3, 2, 2, 2), (4, 4, 4), {}),
    ],
)
def test_restored_it_is_the_identity_until_it_is_moved(
    shape: tuple[int, ...], size: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    model = conv_model(floats(*shape), floats(shape[0], seed=1), size, **attributes)
    net, sites = imported(model), restorable(sites_of(model))
    inputs = seen(shape[1] * attributes.get("group", 1), *size)
    with torch.no_grad():
        before = net(inputs[0])[0]
        restore(net, sites, inputs)
        assert isinstance(net.after("y"), RestoredBatchNorm)
        assert not net.training
        torch.testing.assert_close(net(inputs[0])[0], before, rtol=1e-5, atol=1e-5)
        norm = net.after("y")
        assert isinstance(norm, RestoredBatchNorm)
        norm.gamma.mul_(1.01)
        assert float((net(inputs[0])[0] - before).abs().max()) > 1e-2


def test_the_statistics_are_those_of_all_inputs() -> None:
    model = conv_model(floats(6, 5, 3, 3), floats(6, seed=1), (6, 7))
    net, inputs = imported(model), seen(5, 6, 7)
    with torch.no_grad():
        y = torch.cat([net(x)[0] for x in inputs])
    restore(net, restorable(sites_of(model)), inputs)
    norm = net.after("y")
    assert isinstance(norm, RestoredBatchNorm)
    torch.testing.assert_close(norm.mean, y.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.var, y.var((0, 2, 3), correction=0), rtol=1e-5, atol=1e-5)


def test_training_mode_uses_the_batch_and_moves_the_statistics() -> None:
    norm = RestoredBatchNorm(torch.tensor([1.0, -1.0]), torch.tensor([4.0, 0.25]))
    y = torch.from_numpy(floats(16, 2, 5)) * 3 + 7
    held = norm.train()(y)
    mean, var = y.mean((0, 2)), y.var((0, 2), correction=0)
    scale = (norm.gamma / (var + 1e-5).sqrt())[:, None]
    torch.testing.assert_close(held, scale * (y - mean[:, None]) + norm.beta[:, None], rtol=1e-5, atol=1e-5)
    # A tenth of the way, towards the unbiased variance.
    torch.testing.assert_close(norm.mean, 0.9 * torch.tensor([1.0, -1.0]) + 0.1 * mean)
    torch.testing.assert_close(norm.var, 0.9 * torch.tensor([4.0, 0.25]) + 0.1 * y.var((0, 2)))
    assert not torch.allclose(norm.eval()(y), held, atol=0.1)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("shape", "groups"), [((6, 5, 3, 3), 1), ((6, 2, 3), 3)])
def test_folding_is_exact(shape: tuple[int, ...], groups: int, biased: bool) -> None:
    torch.manual_seed(0)
    norm = RestoredBatchNorm(torch.randn(6), torch.rand(6) + 0.1).eval()
    with torch.no_grad():
        norm.gamma.mul_(torch.rand(6) * 4 - 2)
        norm.beta.add_(torch.randn(6))
    weight, bias = torch.randn(shape, dtype=torch.float64), torch.randn(6, dtype=torch.float64) if biased else None
    x = torch.randn(3, shape[1] * groups, *(7,) * (len(shape) - 2), dtype=torch.float64)
    conv = F.conv2d if len(shape) == 4 else F.conv1d
    wanted = norm.double()(conv(x, weight, bias, groups=groups))
    scaled, moved = fold(weight, bias, norm)
    assert (scaled.dtype, moved.dtype) == (torch.float64, torch.float64)
    torch.testing.assert_close(conv(x, scaled, moved, groups=groups), wanted, rtol=1e-12, atol=1e-12)
    scaled, moved = fold(weight.float(), None if bias is None else bias.float(), norm)
    assert (scaled.dtype, moved.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e-2])
def test_a_channel_that_hardly_varies_is_not_blown_up(scale: float) -> None:
    """On the batch on which it was measured, training mode is the identity too, relative to each channel's own variation.

    The batch statistics divide by sqrt(var + eps) and gamma multiplies by the same, however small the variance is.
    """
    weight, bias = floats(6, 5, 3, 3), np.zeros(6, dtype=np.float32)
    weight[2] *= scale
    model = conv_model(weight, bias, (6, 7))
    net, x = imported(model), seen(5, 6, 7)[0]
    with torch.no_grad():
        before = net(x)[0]
    restore(net, restorable(sites_of(model)), [x])
    y = net.train()(x)[0]
    spread = before.std((0, 2, 3)).clamp_min(1e-6)[:, None, None]
    assert float(((y.detach() - before) / spread).abs().max()) < 1e-2
    y.square().sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())


def test_where_batchnorm_is_put_back() -> None:
    """Behind convolutions with a bias of their own; not where one follows, nor without or with a shared bias, nor linear."""
    weights = {f"w{k}": floats(4, 4, 3, 3, seed=k) for k in range(5)}
    vectors = {name: np.abs(floats(4, seed=9)) for name in ("b0", "b1", "both", "scale", "shift", "mean", "var")}
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["own"]),
        helper.make_node("Conv", ["own", "w1", "b1"], ["normed"]),
        helper.make_node("BatchNormalization", ["normed", "scale", "shift", "mean", "var"], ["n"]),
        helper.make_node("Conv", ["n", "w2"], ["bare"]),
        helper.make_node("Conv", ["bare", "w3", "both"], ["one"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["one", "w4", "both"], ["other"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["other"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "wy", "by"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 9, 9])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])
    model = model_of(nodes, [x], [y], {**weights, **vectors, "wy": floats(4, 5), "by": floats(5)})
    assert keys(sites_of(model)) == ["own", "normed", "bare", "one", "other", "y"]
    assert keys(restorable(sites_of(model))) == ["own"]


def test_a_layer_that_no_output_needs_is_passed_over() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["y"]),
        helper.make_node("Conv", ["x", "u", "c"], ["unread"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 5, 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 3, 3])
    held = {"w": floats(4, 4, 3, 3), "u": floats(4, 4, 3, 3), "b": floats(4), "c": floats(4, seed=1)}
    model = model_of(nodes, [x], [y], held)
    net = imported(model)
    restore(net, restorable(sites_of(model)), seen(4, 5, 5))
    assert net.after("y") is not None
    assert not net.has_step("unread")


def test_round_trip_through_training_to_the_written_file() -> None:
    """Import, restore, train, harvest, rewrite: onnxruntime gives what the trained module gives, to 1e-4 on the logits.

    On the way the function has really changed, and two layers have become chains with the BatchNorm in their last factor.
    """
    model = network()
    net, teacher, sites = imported(model), imported(model), sites_of(model)
    x = floats(96, 3, 8, 8, seed=3)
    batches = Batches(x, np.random.default_rng(0).integers(0, 5, 96), batch=32)
    restore(net, restorable(sites), batches.sample(96))
    assert [key for key in ("c1", "c2", "c3", "c4", "y") if net.after(key) is not None] == ["c1", "c2", "c4"]
    ranks = {"c1": (3, 2), "c2": None, "c3": (4,), "c4": None, "y": None}
    decompose(net, sites, RankPlan(ranks, Cost(0, 0)), {})
    recipe = replace(RECIPES["default"], batch=32, restore=True)
    train(net, teacher, batches, recipe, Phase(lr=0.05), name="tuning", epochs=6, report=lambda _: None)
    result = harvest(net, sites, RankPlan(ranks, Cost(0, 0)))
    assert set(result.chains) == {"c1", "c3"}
    assert result.biases == {}
    finished = rewritten(model, result.chains, weights=result.weights, biases=result.biases)
    with torch.no_grad():
        trained = net(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(output(finished, x), trained, rtol=1e-4, atol=1e-4)
    assert np.abs(output(model, x) - trained).max() > 0.1
    # Nothing was added to the file but the factors in the place of the layers: biases are where they were.
    kept = {made.key: made for made in sites_of(finished)}
    assert {key: kept[key].bias for key in ("c2", "c4", "y")} == {"c2": "b2", "c4": "b4", "y": "b5"}
    spent = sum(method_of(made).cost(made, ranks[made.key] or (1,)).params if ranks[made.key] else made.params for made in sites)
    assert sum(made.params for made in kept.values()) == spent


@pytest.mark.parametrize("by_batch", [False, True])
def test_statistics_move_only_where_batchnorm_goes_by_the_batch(by_batch: bool) -> None:
    """Scale and shift of a graph's own BatchNorm are trained either way; its mean and variance by no default."""
    weights = {"w": floats(4, 3, 3, 3), "wy": floats(4, 5), "by": floats(5)}
    vectors = {name: 0.5 + np.abs(floats(4, seed=9)) for name in ("scale", "shift", "mean", "var")}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"]),
        helper.make_node("GlobalAveragePool", ["n"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "wy", "by"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])
    model = model_of(nodes, [x], [y], {**weights, **vectors})
    net = imported(model)
    batches = Batches(floats(96, 3, 8, 8, seed=3), np.random.default_rng(0).integers(0, 5, 96), batch=32)
    recipe = RECIPES["default"] if not by_batch else replace(RECIPES["default"], restore=True)
    train(net, imported(model), batches, recipe, Phase(lr=0.05), name="tuning", epochs=2, report=lambda _: None)
    moved = {name for name, value in vectors.items() if not np.allclose(net.weight(name).detach().numpy(), value, atol=1e-6)}
    assert moved == {"scale", "shift"} | ({"mean", "var"} if by_batch else set())


@pytest.mark.parametrize("chain", [False, True])
def test_folding_gives_a_layer_without_bias_one(chain: bool) -> None:
    """Asked for by hand, it is put behind any convolution; the file then has a bias more."""
    model = conv_model(floats(8, 5, 3, 3), None, (6, 7))
    net, sites = imported(model), sites_of(model)
    assert restorable(sites) == []
    restore(net, sites, seen(5, 6, 7))
    norm = net.after("y")
    assert isinstance(norm, RestoredBatchNorm)
    with torch.no_grad():
        norm.beta.add_(0.3)
    plan = RankPlan({"y": (2, 2) if chain else None}, Cost(0, 0))
    decompose(net, sites, plan, {})
    result = harvest(net, sites, plan)
    finished = rewritten(model, result.chains, weights=result.weights, biases=result.biases)
    x = seen(5, 6, 7)[0]
    with torch.no_grad():
        np.testing.assert_allclose(output(finished, x.numpy()), net(x)[0].numpy(), rtol=1e-4, atol=1e-4)
    last = sites_of(finished)[-1]
    assert last.bias is not None
    assert (set(result.biases) == {"y"}) is not chain
