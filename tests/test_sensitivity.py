"""The damage that truncating a layer does, measured."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from batude_onnx.records import Cost
from batude_onnx.training.losses import Objective
from batude_onnx.training.rules import MeasuredRules, share_lost
from batude_onnx.training.sensitivity import Curve, measure
from batude_onnx.training.statistics import canonical
from tests.importer_graphs import floats, imported
from tests.loading_models import model_of
from tests.small_models import network, sites_of, terms


def test_a_curve_is_a_power_law_between_points_and_proportional_outside() -> None:
    curve = Curve((0.01, 0.1), (1.0, 100.0))
    found = curve(np.array([[0.0, 0.001, 0.01], [0.1**1.5, 0.1, 0.2]]))
    np.testing.assert_allclose(found, [[0.0, 0.1, 1.0], [10.0, 100.0, 200.0]], rtol=1e-9)
    assert (np.diff(Curve((0.02,), (3.0,))(np.linspace(0, 1, 50))) > 0).all()


def quiet_branch() -> onnx.ModelProto:
    """Two equal branches of which one is multiplied by a hundredth: y = a + 0.01 b."""
    held = {"wa": floats(8, 8, 3, 3), "wb": floats(8, 8, 3, 3), "small": np.array(0.01, dtype=np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "wa"], ["a"]),
        helper.make_node("Conv", ["x", "wb"], ["b"]),
        helper.make_node("Mul", ["b", "small"], ["s"]),
        helper.make_node("Add", ["a", "s"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8, 7, 7])
    return model_of(nodes, [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, 5, 5])], held)


def test_layers_are_compared_by_what_their_truncation_does_to_the_outputs() -> None:
    """By the share of energy lost both branches are alike; measured, the quiet one is what pays."""
    model = quiet_branch()
    net, sites = imported(model), sites_of(model)
    before = {name: net.weight(name).clone() for name in net.weight_names()}
    weights = {site.key: canonical(site, net.weight(site.weight)) for site in sites}
    losses = {site.key: share_lost(site, weights[site.key], None) for site in sites}
    x = torch.from_numpy(floats(64, 8, 7, 7))
    few = terms(700, Cost(2 * 576, 0))
    done: list[tuple[int, int]] = []
    curves = measure(net, sites, losses, few, [x[:32], x[32:]], {}, Objective(), lambda k, of: done.append((k, of)))
    assert done == [(1, 2), (2, 2)]
    # A hundredth of the amplitude is a ten-thousandth of the mean square.
    assert curves["b"](np.array([0.1])) == pytest.approx(1e-4 * curves["a"](np.array([0.1])), rel=0.05)
    for name, value in before.items():
        torch.testing.assert_close(net.weight(name), value, rtol=0, atol=0)

    v = {key: (weight,) for key, weight in weights.items()}
    plain = MeasuredRules(sites, few).ranks(v)
    measured = MeasuredRules(sites, few, {}, curves).ranks(v)
    assert measured.ranks["a"] is None
    assert measured.ranks["b"] is not None
    assert plain.ranks != measured.ranks


def test_every_kind_of_layer_is_measured() -> None:
    model = network(1)
    net, sites = imported(model), [site for site in sites_of(model) if site.method is not None]
    losses = {site.key: share_lost(site, canonical(site, net.weight(site.weight)), None) for site in sites}
    inputs = [torch.from_numpy(floats(40, 3, 8, 8))]
    curves = measure(net, sites, losses, terms(9, Cost(10, 0)), inputs, {}, Objective(), lambda k, of: None)
    assert set(curves) == {"c1", "c2", "c3", "c4", "y"}
    for curve in curves.values():
        assert list(curve.lost) == sorted(curve.lost)
        assert list(curve.damage) == sorted(curve.damage)
        assert curve.damage[-1] > 0
