"""Statistics from onnxruntime against the same from torch, and against a run by hand where they are those of bodies."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional as F

from batude_onnx import calibration, decomposition
from batude_onnx.importer import import_graph
from batude_onnx.layers import find_sites, infer_shapes, nodes_by_key, read_bias, read_weight
from batude_onnx.proving import survey
from batude_onnx.records import Cost, FactorChain, RankPlan, Site
from batude_onnx.rewriting import rewrite
from batude_onnx.training import compressing, sensitivity
from batude_onnx.training.chain_module import ChainModule
from batude_onnx.training.features import Sums, collect, patches
from batude_onnx.training.losses import Objective
from batude_onnx.training.refit import Regression, refit
from batude_onnx.training.rules import share_lost
from batude_onnx.training.statistics import canonical
from tests.body_models import nested
from tests.importer_graphs import floats, imported
from tests.layer_models import LAYERS, values
from tests.loading_models import model_of
from tests.small_models import network, sites_of, terms

Array = np.ndarray[Any, np.dtype[Any]]


def seen_of(proto: onnx.ModelProto, samples: list[dict[str, Array]]) -> tuple[list[Site], dict[str, Sums]]:
    model = ir.from_proto(proto)
    seen, nodes = survey(model), nodes_by_key(model)
    sites = [site for site in seen.sites if site.weight]
    weights = {site.key: torch.from_numpy(read_weight(nodes[site.key]).copy()) for site in sites}
    biases = {key: torch.from_numpy(bias.copy()) for key in weights if (bias := read_bias(nodes[key])) is not None}
    return sites, calibration.collect(model, sites, weights, biases, seen.shapes, samples, threads=1)


def near(found: Sums, wanted: Sums) -> bool:
    pairs = [(found.xx, wanted.xx), (found.xy, wanted.xy), (found.x, wanted.x), (found.y, wanted.y)]
    same = [np.allclose(a, b, rtol=1e-4, atol=1e-4 * float(torch.as_tensor(b).abs().max())) for a, b in pairs]
    return found.rows == wanted.rows and all(same)


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_what_a_layer_sees_is_what_torch_says(name: str) -> None:
    layer = LAYERS[name]
    x = [values(*layer.x, seed=seed) for seed in (21, 22)]
    (site,), found = seen_of(layer.model(), [{"x": batch} for batch in x])
    net = import_graph(ir.from_proto(layer.model())).eval()
    with torch.no_grad():
        wanted = collect(site, [net.begin(torch.from_numpy(batch)) for batch in x])
        other = collect(site, [net.begin(torch.from_numpy(batch.copy() * 1.01)) for batch in x])
    assert near(found["y"], wanted)
    assert not near(found["y"], other), "inputs larger by a hundredth"


def test_many_positions_are_drawn_from() -> None:
    layer = replace(LAYERS["conv2d"], x=(2, 4, 40, 40), out=(2, 6, 40, 40))
    (site,), found = seen_of(layer.model(), [{"x": values(*layer.x)}])
    assert found["y"].rows == 2 * 256
    scale = patches(torch.from_numpy(values(*layer.x)), site).square().mean()
    drawn = torch.as_tensor(found["y"].xx).diagonal(dim1=1, dim2=2).mean() / found["y"].rows
    assert abs(float(drawn / scale) - 1) < 0.05


def by_hand(flag: bool, x: Array) -> dict[str, Sums]:
    """Inputs of the layers in `nested`'s branches and in its loop, and the sums over them."""
    model = ir.from_proto(nested())
    nodes = nodes_by_key(model)
    found: dict[str, Sums] = {}
    sites = {site.key: site for site in survey(model).sites}

    def layer(key: str, given: torch.Tensor) -> torch.Tensor:
        weight, bias = torch.from_numpy(read_weight(nodes[key]).copy()), read_bias(nodes[key])
        out = F.conv2d(given, weight, None if bias is None else torch.from_numpy(bias.copy()), padding=1)
        rows = out.movedim(1, -1).reshape(1, -1, out.shape[1])
        found.setdefault(key, Sums()).add(patches(given, sites[key]), rows)
        return out

    a = layer("a", torch.from_numpy(x))
    if flag:
        layer("c@2", a)
    else:
        shared = torch.from_numpy(values(8, 8, 3, 3, seed=7))
        state = F.conv2d(layer("c", a), shared, padding=1)
        for _ in range(3):
            state = layer("l", state).tanh()
    return found


@pytest.mark.parametrize("flags", [(True,), (False,), (True, False, False)])
def test_what_layers_in_bodies_see(flags: tuple[bool, ...]) -> None:
    batches = [(flag, values(2, 4, 6, 6, seed=30 + number)) for number, flag in enumerate(flags)]
    _, found = seen_of(nested(), [{"x": x, "flag": np.array(flag)} for flag, x in batches])
    wanted: dict[str, list[Sums]] = {}
    for flag, x in batches:
        for key, sums in by_hand(flag, x).items():
            wanted.setdefault(key, []).append(sums)
    assert found.keys() == wanted.keys(), "a function is not looked into, nor is what no sample reaches"
    for key, parts in wanted.items():
        total = Sums(*(sum(getattr(part, name) for part in parts) for name in ("xx", "xy", "x", "y", "rows")))
        assert near(found[key], total), key
        assert not near(found[key], replace(total, xx=torch.as_tensor(total.xx) * 1.01))


def scanned(opset: int = 17) -> onnx.ModelProto:
    """x (2, 5, 4), rows of which a Scan takes one by one through a MatMul."""
    rows = helper.make_tensor_value_info("row", TensorProto.FLOAT, [2, 4])
    body = helper.make_graph(
        [helper.make_node("MatMul", ["row", "w"], ["m"])], "body", [rows],
        [helper.make_tensor_value_info("m", TensorProto.FLOAT, [2, 6])],
    )  # fmt: skip
    node = helper.make_node(
        "Scan", ["x"], ["y"], body=body, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1], scan_output_directions=[0]
    )
    graph = helper.make_graph(
        [node], "scanned",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5, 6])],
        [onnx.numpy_helper.from_array(values(4, 6), "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("opset", [9, 11, 17])
def test_what_a_layer_in_a_scan_sees(opset: int) -> None:
    x = values(2, 5, 4, seed=40)
    (site,), found = seen_of(scanned(opset), [{"x": x}])
    assert site.inside == ("Scan",)
    flat = x.reshape(-1, 4).astype(np.float64)
    assert found["m"].rows == 10
    np.testing.assert_allclose(torch.as_tensor(found["m"].xx)[0], flat.T @ flat, rtol=1e-5, atol=1e-5)


class Compared:
    """`network(1)` in torch and as a graph, with the same samples, weights and fits."""

    def __init__(self) -> None:
        self.proto = network(1)
        self.model, self.net = ir.from_proto(self.proto), imported(self.proto)
        self.sites = [site for site in sites_of(self.proto) if site.method is not None]
        self.weights = {site.key: canonical(site, self.net.weight(site.weight)).detach() for site in self.sites}
        self.biases = {site.key: self.net.weight(site.bias).detach() for site in self.sites if site.bias is not None}
        self.samples = [floats(40, 3, 8, 8, seed=seed) for seed in (1, 2)]
        self.feeds = [{"x": x} for x in self.samples]
        shapes = survey(self.model).shapes
        sums = calibration.collect(self.model, self.sites, self.weights, self.biases, shapes, self.feeds, threads=1)
        self.fits = {site.key: Regression(site, sums[site.key], self.weights[site.key], None) for site in self.sites}
        self.losses = {site.key: share_lost(site, self.weights[site.key], None) for site in self.sites}


def silent(done: int, total: int) -> None:
    """A report that nobody reads."""


def test_the_damage_is_what_torch_says() -> None:
    both = Compared()
    inputs = [torch.from_numpy(x) for x in both.samples]
    wanted = sensitivity.measure(both.net, both.sites, both.losses, terms(9, Cost(10, 0)), inputs, {}, Objective(), silent)
    found = calibration.measure(
        both.model, both.sites, both.losses, terms(9, Cost(10, 0)), both.feeds, both.fits, Objective(), silent, threads=1
    )
    assert found.keys() == wanted.keys()
    for key, curve in wanted.items():
        assert found[key].lost == curve.lost
        np.testing.assert_allclose(found[key].damage, curve.damage, rtol=1e-2, atol=1e-7)
        assert not np.allclose(found[key].damage, np.multiply(curve.damage, 1.1), rtol=1e-2, atol=1e-7)


def test_factors_are_fitted_as_torch_fits_them() -> None:
    both = Compared()
    ranks = {site.key: tuple(max(1, most // 2) for most in bounds(site)) for site in both.sites}
    dense, inputs = copy.deepcopy(both.net), [torch.from_numpy(x) for x in both.samples]
    compressing.decompose(both.net, both.sites, RankPlan(ranks, Cost(0, 0)), {})
    refit(both.net, dense, both.sites, inputs, {}, silent)
    found = calibration.refit(
        both.model, partial(rewrite, both.model), both.sites, ranks, both.weights, both.fits, {}, both.feeds, silent, threads=1
    )
    alone = {site.key: both.fits[site.key].chain(ranks[site.key]) for site in both.sites}
    apart = {}
    for site in both.sites:
        module = both.net.operation(site.key)
        assert isinstance(module, ChainModule)
        wanted, ours, first = (reconstructed(chain) for chain in (module.chain, found[site.key], alone[site.key]))
        apart[site.key] = [float((other - wanted).norm() / wanted.norm()) for other in (ours, first)]
    assert max(ours for ours, _ in apart.values()) < 1e-2, apart
    assert max(first for _, first in apart.values()) > 3e-2, "later layers make up for what earlier ones have lost"


def bounds(site: Site) -> tuple[int, ...]:
    return decomposition.method_of(site).max_ranks(site.shape, site.geometry.groups)


def reconstructed(chain: FactorChain) -> torch.Tensor:
    return decomposition.method(chain.method).reconstruct(chain)


@pytest.mark.parametrize("ends", ["ArgMax", "ReduceMean"])
def test_outputs_that_say_little_of_a_run(ends: str) -> None:
    """Whole numbers: what they are made of is compared; a single number: in units of its variance over all samples."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node(ends, ["c"], ["y"], keepdims=1)]
    kind = TensorProto.INT64 if ends == "ArgMax" else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 6])]
    proto = model_of(nodes, inputs, [helper.make_tensor_value_info("y", kind, None)], {"w": values(8, 4, 3, 3)})
    model, feeds = ir.from_proto(proto), [{"x": values(1, 4, 6, 6, seed=seed)} for seed in range(8)]
    (site,) = [decomposition.assign(found) for found in find_sites(model, infer_shapes(model))]
    weights = {"c": torch.from_numpy(values(8, 4, 3, 3))}
    sums = calibration.collect(model, [site], weights, {}, {}, feeds, threads=1)
    fits = {"c": Regression(site, sums["c"], weights["c"], None)}
    losses = {"c": share_lost(site, weights["c"], None)}
    curves = calibration.measure(model, [site], losses, terms(9, Cost(10, 0)), feeds, fits, Objective(), silent, threads=1)
    assert all(1e-6 < damage < 10 and damage != 1.0 for damage in curves["c"].damage), "1 is said where nothing can be"
