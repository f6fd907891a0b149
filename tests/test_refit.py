"""Factors fitted in closed form to the original's outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from batude_onnx.decomposition import Metric, method_of
from batude_onnx.importer import GraphNet
from batude_onnx.records import Cost, RankPlan, Site
from batude_onnx.training.chain_module import ChainModule
from batude_onnx.training.compressing import decompose
from batude_onnx.training.normalisation import RestoredBatchNorm, restorable, restore
from batude_onnx.training.refit import refit
from batude_onnx.training.statistics import collect_metrics
from tests.importer_graphs import imported
from tests.small_models import conv_model, floats, linear_model, network, sites_of, transposed_model

Ranks = Mapping[str, tuple[int, ...] | None]


def correlated(*shape: int, seed: int = 0) -> Tensor:
    """Inputs (N, C, ...) of which few directions carry nearly everything, away from zero: where the outputs' error is not the
    weights'."""
    x = torch.from_numpy(floats(*shape, seed=seed))
    channels = shape[1]
    mixing = torch.from_numpy(floats(channels, channels, seed=99)) * torch.logspace(0, -2, channels)
    return torch.einsum("dc,nc...->nd...", mixing, x) + 0.7


def compressed(model: onnx.ModelProto, ranks: Ranks, metrics: Mapping[str, Metric] | None = None) -> tuple[GraphNet, list[Site]]:
    net, sites = imported(model), [found for found in sites_of(model) if found.key in ranks]
    decompose(net, sites, RankPlan(ranks, Cost(0, 0)), metrics or {})
    return net, [found for found in sites if ranks[found.key] is not None]


def error(net: GraphNet, original: GraphNet, x: Tensor) -> float:
    """Mean square of the difference of outputs, relative to the outputs' variance."""
    with torch.no_grad():
        ours, theirs = net(x)[0], original(x)[0]
    return float((ours - theirs).square().mean() / theirs.var())


def full(model: onnx.ModelProto) -> Ranks:
    return {found.key: method_of(found).max_ranks(found.shape, found.geometry.groups) for found in sites_of(model)}


LAYERS: dict[str, tuple[onnx.ModelProto, tuple[int, ...], Ranks]] = {
    "3x3": (conv_model(floats(8, 6, 3, 3), floats(8), (7, 7), pads=[1, 1, 1, 1]), (6, 7, 7), {"y": (3, 3)}),
    "grouped": (conv_model(floats(8, 4, 3, 3), floats(8), (7, 7), group=2), (8, 7, 7), {"y": (2, 2)}),
    "transposed": (
        transposed_model(
            floats(8, 4, 3, 2), floats(8), (6, 5), group=2, strides=[2, 1], pads=[1, 0, 0, 1], output_padding=[1, 0]
        ),
        (8, 6, 5),
        {"y": (2, 2)},
    ),
    "strided": (
        conv_model(floats(8, 6, 3, 3), floats(8), (8, 7), strides=[2, 2], pads=[0, 1, 1, 0], dilations=[1, 2]),
        (6, 8, 7),
        {"y": (3, 3)},
    ),
    "same": (conv_model(floats(8, 6, 2, 3), floats(8), (8, 7), strides=[2, 2], auto_pad="SAME_LOWER"), (6, 8, 7), {"y": (3, 3)}),
    "1-D": (conv_model(floats(8, 6, 3), floats(8), (16,)), (6, 16), {"y": (3, 3)}),
    "no bias": (conv_model(floats(8, 6, 3, 3), None, (7, 7)), (6, 7, 7), {"y": (3, 3)}),
    "1x1": (conv_model(floats(9, 8, 1, 1), floats(9), (6, 6), strides=[2, 2]), (8, 6, 6), {"y": (3,)}),
    "1x1 grouped": (conv_model(floats(8, 5, 1, 1), floats(8), (6, 6), group=2), (10, 6, 6), {"y": (2,)}),
    "Gemm": (linear_model("Gemm", floats(9, 7), floats(7)), (9,), {"y": (2,)}),
    "Gemm transB": (linear_model("Gemm", floats(7, 9), floats(7), transB=1), (9,), {"y": (2,)}),
    "MatMul": (linear_model("MatMul", floats(9, 7)), (9,), {"y": (2,)}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_full_rank_gives_the_original_back(name: str) -> None:
    """From factors that are quite wrong: only the first, which is kept, still spans what it did."""
    model, shape, _ = LAYERS[name]
    net, sites = compressed(model, full(model))
    with torch.no_grad():
        module = net.operation("y")
        assert isinstance(module, ChainModule)
        for parameter in list(module.parameters())[1 if len(module.weights) == 3 else 0 :]:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    original, x = imported(model), correlated(256, *shape)
    assert error(net, original, x) > 1e-2
    refit(net, original, sites, [x[:128], x[128:]], {}, lambda done, of: None)
    # What is left is the ridge's: 1e-4 of the mean variance on directions that carry little of it.
    assert error(net, original, x) < 1e-4


@pytest.mark.parametrize("name", LAYERS)
def test_at_low_rank_outputs_come_nearer(name: str) -> None:
    """On inputs that it has not seen, compared with the nearest weights of the same ranks."""
    model, shape, ranks = LAYERS[name]
    net, sites = compressed(model, ranks)
    original, x, unseen = imported(model), correlated(256, *shape), correlated(256, *shape, seed=7)
    before = error(net, original, unseen)
    refit(net, original, sites, [x], {}, lambda done, of: None)
    after = error(net, original, unseen)
    assert after < 0.6 * before
    module = net.operation("y")
    assert isinstance(module, ChainModule)
    chain = module.trained()
    assert chain.weights == method_of(sites[0]).cost(sites[0], ranks["y"] or ()).params
    # A bias only where the layer has one: the budget counts no other.
    assert (chain.layers[-1].bias is not None) == (sites[0].bias is not None)
    assert all(layer.bias is None for layer in chain.layers[:-1])


def descend(parameters: list[Tensor], loss: Callable[..., Tensor]) -> float:
    """The least loss that L-BFGS comes to."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        value = loss(*parameters)
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return closure()


def test_a_linear_layer_gets_the_least_error_that_its_rank_allows() -> None:
    """Reduced-rank regression against gradient descent on both factors and the bias from 5 random starts."""
    model, shape, ranks = LAYERS["Gemm"]
    net, sites = compressed(model, ranks)
    original, x = imported(model), correlated(300, *shape)
    refit(net, original, sites, [x], {}, lambda done, of: None)
    reached = error(net, original, x)
    with torch.no_grad():
        y = original(x)[0]
    found = []
    for seed in range(5):
        torch.manual_seed(seed)
        factors = [torch.randn(size, requires_grad=True) for size in ((2, 9), (7, 2), (7,))]
        found.append(descend(factors, lambda a, b, c: (x @ a.T @ b.T + c - y).square().mean() / y.var()))
    assert reached <= min(found) * (1 + 1e-3)
    assert min(found) <= reached * 1.02
    assert reached > 1e-4


def test_the_metric_of_the_outputs_decides_which_are_kept() -> None:
    """With one output that counts a hundred times, it is reproduced at rank 1, the others suffer."""
    model = linear_model("Gemm", floats(9, 7), floats(7))
    x = torch.from_numpy(floats(400, 9, seed=1))
    weighty = torch.diag(torch.tensor([1.0, 1, 1, 1e4, 1, 1, 1]))[None]
    metric = Metric.of_moments(torch.eye(9)[None], weighty, ridge=1e-9)
    original = imported(model)
    off = {}
    for name, metrics in (("plain", {}), ("weighed", {"y": metric})):
        net, sites = compressed(model, {"y": (1,)})
        refit(net, original, sites, [x], metrics, lambda done, of: None)
        with torch.no_grad():
            off[name] = (net(x)[0] - original(x)[0]).square().mean(0)
    assert float(off["weighed"][3]) < 0.01 * float(off["plain"][3])
    assert float(off["weighed"].sum()) > float(off["plain"].sum())


def test_later_layers_correct_what_earlier_ones_lost() -> None:
    """Re-fitted in order, the network is nearer to the original than with each layer fitted on the original's inputs."""
    model = network(2)
    ranks: Ranks = {"c1": (3, 2), "c2": (3, 2), "c3": (5,), "c4": (4, 4), "y": None}
    original, x, unseen = imported(model), torch.from_numpy(floats(512, 3, 8, 8)), torch.from_numpy(floats(512, 3, 8, 8, seed=1))
    metrics = collect_metrics(original, [found for found in sites_of(model) if found.key in ranks], [x])
    net, sites = compressed(model, ranks, metrics)
    before = error(net, original, unseen)
    done = []
    refit(net, original, sites, [x[:256], x[256:]], metrics, lambda number, of: done.append((number, of)))
    after = error(net, original, unseen)
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert after < 0.7 * before

    apart, _ = compressed(model, ranks, metrics)
    for found in sites:
        alone, _ = compressed(model, {**dict.fromkeys(ranks), found.key: ranks[found.key]}, metrics)
        refit(alone, original, [found], [x], metrics, lambda number, of: None)
        module = alone.operation(found.key)
        assert isinstance(module, ChainModule)
        apart.replace(found.key, module)
    assert after < error(apart, original, unseen)


def test_a_batchnorm_that_training_has_moved_stays_behind_the_layer() -> None:
    """The dense network is the one that training left, with the same BatchNorm: fitted to the one before, outputs are off."""
    model, shape, _ = LAYERS["3x3"]
    net, original, x = imported(model), imported(model), correlated(256, *shape)
    sites = restorable(sites_of(model))
    restore(net, sites, [x])
    norm = net.after("y")
    assert isinstance(norm, RestoredBatchNorm)
    with torch.no_grad():
        norm.gamma.mul_(1.5)
        norm.beta.add_(1.0)
        norm.mean.sub_(0.5)
        net.weight("w").mul_(1.2)
    dense = copy.deepcopy(net)
    decompose(net, sites, RankPlan(full(model), Cost(0, 0)), {})
    refit(net, original, sites, [x[:128], x[128:]], {}, lambda done, of: None)
    assert error(net, dense, x) > 1e-2
    refit(net, dense, sites, [x[:128], x[128:]], {}, lambda done, of: None)
    assert error(net, dense, x) < 1e-4
    assert net.after("y") is norm


def test_a_layer_that_only_sees_zeros_keeps_finite_weights() -> None:
    model, shape, ranks = LAYERS["3x3"]
    net, sites = compressed(model, ranks)
    original, x = imported(model), torch.zeros(8, *shape)
    refit(net, original, sites, [x], {}, lambda done, of: None)
    assert all(bool(parameter.isfinite().all()) for parameter in net.parameters())
    with torch.no_grad():
        torch.testing.assert_close(net(x)[0], original(x)[0], rtol=0, atol=1e-5)


def test_all_factors_are_fitted_and_balanced() -> None:
    model, shape, ranks = LAYERS["3x3"]
    net, sites = compressed(model, ranks)

    def weights() -> list[np.ndarray[Any, Any]]:
        module = net.operation("y")
        assert isinstance(module, ChainModule)
        return [layer.weight for layer in module.trained().layers]

    before = weights()
    refit(net, imported(model), sites, [correlated(64, *shape)], {}, lambda done, of: None)
    after = weights()
    assert all(np.abs(one - other).max() > 1e-2 for one, other in zip(before, after, strict=True))
    norms = [float(np.linalg.norm(weight)) for weight in after]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)
