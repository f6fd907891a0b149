"""What a layer sees and should give: the sums behind every fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from batude_onnx.decomposition import method_of
from batude_onnx.records import Cost, RankPlan
from batude_onnx.training import features
from batude_onnx.training.compressing import decompose
from batude_onnx.training.features import collect, patches
from batude_onnx.training.normalisation import RestoredBatchNorm
from batude_onnx.training.refit import refit
from tests.importer_graphs import floats, imported
from tests.loading_models import model_of
from tests.small_models import sites_of
from tests.test_refit import LAYERS, correlated


@pytest.mark.parametrize("name", LAYERS)
def test_the_weight_applied_to_the_patches_is_the_layer(name: str) -> None:
    model, shape, _ = LAYERS[name]
    net, (site,) = imported(model), sites_of(model)
    x = correlated(5, *shape)
    with torch.no_grad():
        held = net.weight(site.weight)
        weight = site.layout.canonical(held).reshape(site.geometry.groups, -1, int(np.prod(site.shape[1:])))
        found = (patches(x, site) @ weight.mT).movedim(0, 1).reshape(-1, site.shape[0])
        bias = 0 if site.bias is None else net.weight(site.bias)
        (wanted,) = net(x)
    wanted = wanted.movedim(1, -1).reshape(-1, site.shape[0])
    torch.testing.assert_close(found + bias, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found.flip(0) + bias, wanted, rtol=1e-4, atol=1e-4)


def test_slices_change_nothing_and_large_maps_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape, _ = LAYERS["3x3"]
    net, (site,) = imported(model), sites_of(model)
    x = correlated(6, *shape)
    with torch.no_grad():
        whole = collect(site, [net.begin(x)])
        assert whole.rows == 6 * 49
        monkeypatch.setattr(features, "ELEMENTS", 1)
        sliced = collect(site, [net.begin(x)])
        torch.testing.assert_close(sliced.xx, whole.xx, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(sliced.xy, whole.xy, rtol=1e-5, atol=1e-4)
        monkeypatch.setattr(features, "POSITIONS", 10)
        sampled = collect(site, [net.begin(x)])
    assert sampled.rows == 6 * 10
    assert not torch.allclose(torch.as_tensor(sampled.xx), torch.as_tensor(whole.xx), rtol=1e-2)


def residual(*, twice_read: bool = False) -> onnx.ModelProto:
    """x (N, 6, 7, 7) -> Conv h -> Relu -> Conv c; y = c + h. `twice_read`: c is an output, too."""
    held = {"w1": floats(6, 6, 3, 3), "b1": floats(6), "w2": 0.3 * floats(6, 6, 3, 3, seed=1), "b2": floats(6, seed=1)}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "w2", "b2"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "h"], ["y"]),
    ]
    sizes: list[str | int | None] = ["N", 6, 7, 7]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("y", *(["c"] if twice_read else []))]
    return model_of(nodes, [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)], outputs, held)


def test_only_the_last_layer_before_an_add_that_alone_reads_it_is_joined() -> None:
    assert [site.joined for site in sites_of(residual())] == [None, "y"]
    assert [site.joined for site in sites_of(residual(twice_read=True))] == [None, None]


@pytest.mark.parametrize("normalised", [False, True])
def test_a_layer_in_front_of_an_add_makes_up_for_the_other_side(normalised: bool) -> None:
    """The first layer loses much; the second, at full rank, gives some of it back where it is told of the sum."""
    model = residual()
    original, sites = imported(model), sites_of(model)
    x, unseen = correlated(256, 6, 7, 7), correlated(256, 6, 7, 7, seed=3)
    ranks: dict[str, tuple[int, ...] | None] = {"h": (2, 2), "c": method_of(sites[1]).max_ranks(sites[1].shape, 1)}
    off = {}
    for name, chosen in (("joined", sites), ("alone", [replace(site, joined=None) for site in sites])):
        net, dense = imported(model), imported(model)
        if normalised:
            for each in (net, dense):
                norm = RestoredBatchNorm(torch.zeros(6), torch.ones(6))
                with torch.no_grad():
                    norm.gamma.copy_(torch.linspace(0.5, 2.0, 6))
                each.wrap("c", norm.eval())
        decompose(net, chosen, RankPlan(ranks, Cost(0, 0)), {})
        refit(net, dense, chosen, [x], {}, lambda done, of: None)
        with torch.no_grad():
            off[name] = float((net(unseen)[0] - dense(unseen)[0]).square().mean())
        assert off[name] > 1e-3
    assert off["joined"] < 0.8 * off["alone"]
    assert original.has_step("y")
