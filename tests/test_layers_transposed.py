"""Transposed convolutions: read, counted, replaced and trained as the others are."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from batude_onnx import decomposition
from batude_onnx.layers import count, find_sites, infer_shapes, nodes_by_key, read_bias, read_weight
from batude_onnx.pipeline import compress
from batude_onnx.records import Cost, FactorChain, LayerSpec, Layout, Site
from batude_onnx.rewriting import rewrite
from batude_onnx.training.chain_module import ChainModule
from tests.layer_models import TRANSPOSED, Array, one_node, read, values
from tests.pipelines import check, saved, settings_for
from tests.rewritings import ATOL, RTOL, checked, operators, outputs


def site_of(name: str) -> Site:
    model = read(TRANSPOSED[name].model())
    (site,) = find_sites(model, infer_shapes(model))
    return decomposition.assign(site)


def few(way: Site) -> float:
    """A share of the largest ranks with which the chain is smaller than the layer."""
    by = decomposition.method_of(way)
    most, share = by.max_ranks(way.shape, way.geometry.groups), 0.5
    while by.cost(way, tuple(max(1, int(rank * share)) for rank in most)).params > 0.7 * way.params and share > 0.01:
        share /= 2
    return share


def chain_of(name: str, way: Site, share: float) -> FactorChain:
    """The chain of a method at this share of its ranks."""
    node, method = nodes_by_key(read(TRANSPOSED[name].model()))["y"], decomposition.method_of(way)
    most = method.max_ranks(way.shape, way.geometry.groups)
    bias = read_bias(node)
    return method.factor(
        torch.from_numpy(read_weight(node).copy()), None if bias is None else torch.from_numpy(bias),
        way.geometry, tuple(max(1, int(rank * share)) for rank in most), None,
    )  # fmt: skip


WAYS = [(name, way) for name in TRANSPOSED for way in decomposition.alternatives(site_of(name))]
each_way = pytest.mark.parametrize(("name", "way"), WAYS, ids=[f"{name}-{way.method}" for name, way in WAYS])


def test_every_one_of_them_can_be_factored() -> None:
    assert {name for name, _ in WAYS} == set(TRANSPOSED)
    assert len({way.method for _, way in WAYS}) == 5


@pytest.mark.parametrize("name", TRANSPOSED)
def test_read_in_canonical_form_and_counted_at_the_inputs_positions(name: str) -> None:
    layer, model = TRANSPOSED[name], read(TRANSPOSED[name].model())
    shapes = infer_shapes(model)
    site = site_of(name)
    into, out = prod(layer.x[2:]), prod(layer.out[2:])
    assert (site.shape, site.geometry.transposed, site.reason) == (layer.shape, True, None)
    assert (site.positions, site.input_positions, site.output_positions) == (into, into, out)
    assert site.params == prod(layer.stored)
    assert count(model, shapes) == Cost(site.params + (layer.shape[0] if layer.bias else 0), site.params * into)
    assert outputs(layer.model(), x=values(*layer.x))["y"].shape == layer.out


def test_the_weight_is_turned_group_by_group() -> None:
    """Entry by entry: out of group g and channel s of it comes what goes into channel c of the same group."""
    stored = values(*TRANSPOSED["grouped"].stored, seed=1)
    weight = read_weight(nodes_by_key(read(TRANSPOSED["grouped"].model()))["y"])
    for g in range(2):
        for s in range(6):
            for c in range(4):
                np.testing.assert_array_equal(weight[6 * g + s, c], stored[4 * g + c, s])


@pytest.mark.parametrize("axes", [None, (2, 3, 1, 0), (3, 0, 2, 1), (1, 0, 2, 3)])
@pytest.mark.parametrize(("swapped", "groups"), [(False, 1), (True, 1), (True, 2)])
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_a_layout_and_its_inverse(axes: tuple[int, ...] | None, swapped: bool, groups: int, make: Any) -> None:
    stored = values(4, 6, 2, 8)
    read_as = stored if axes is None else stored.transpose(axes)
    layout = Layout(axes, swapped, groups)
    canonical = layout.canonical(make(stored))
    if not swapped:
        np.testing.assert_array_equal(canonical, read_as)
    np.testing.assert_array_equal(layout.stored(canonical), stored)


@each_way
def test_at_full_rank_nothing_changes(name: str, way: Site) -> None:
    proto, chain = TRANSPOSED[name].model(), chain_of(name, way, 1.0)
    after = checked(rewrite(read(proto), {"y": chain}))
    kinds = ["ConvTranspose" if layer.geometry.transposed else "Conv" for layer in chain.layers]
    assert operators(after) == kinds
    assert "ConvTranspose" in kinds
    x = values(*TRANSPOSED[name].x, seed=3)
    wanted = outputs(proto, x=x)["y"]
    np.testing.assert_allclose(outputs(after, x=x)["y"], wanted, rtol=RTOL, atol=ATOL)
    assert np.abs(wanted).max() > 0.1


@each_way
def test_below_full_rank_it_is_the_reconstructed_weight_at_the_predicted_cost(name: str, way: Site) -> None:
    layer, method, chain = TRANSPOSED[name], decomposition.method_of(way), chain_of(name, way, few(way))
    model = read(layer.model())
    edited = rewrite(model, {"y": chain})
    dense = way.layout.stored(method.reconstruct(chain).float().numpy())
    near = rewrite(model, {}, weights={"w": np.ascontiguousarray(dense)})
    x = values(*layer.x, seed=3)
    before, after, expected = (outputs(checked(one), x=x)["y"] for one in (model, edited, near))
    np.testing.assert_allclose(after, expected, rtol=RTOL, atol=ATOL)
    assert np.abs(after - before).max() > 0.05
    bias = layer.shape[0] if layer.bias else 0
    assert count(edited, infer_shapes(edited)) == method.cost(way, chain.ranks) + Cost(bias, 0)


@each_way
def test_a_chain_is_trained_as_onnxruntime_runs_it(name: str, way: Site) -> None:
    chain, layer = chain_of(name, way, 0.5), TRANSPOSED[name]
    x = values(*layer.x, seed=3)
    with torch.no_grad():
        found = ChainModule(chain)(torch.from_numpy(x)).numpy()
        node = nodes_by_key(read(layer.model()))["y"]
        dense = FactorChain("one layer", (LayerSpec(read_weight(node).copy(), read_bias(node), way.geometry),))
        whole = ChainModule(dense)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(
        found, outputs(checked(rewrite(read(layer.model()), {"y": chain})), x=x)["y"], rtol=RTOL, atol=ATOL
    )
    np.testing.assert_allclose(whole, outputs(layer.model(), x=x)["y"], rtol=RTOL, atol=ATOL)


def generator() -> onnx.ModelProto:
    """x (N, 8, 6, 6) -> three times larger in two steps, the second one with its weight behind a Transpose."""
    held: dict[str, Array] = {"v": values(12, 8, 3, 3, seed=1), "w": values(12, 16, 4, 4, seed=2), "b": values(16, seed=3)}
    held["u"] = values(4, 4, 6, 16, seed=4)
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ConvTranspose", ["r", "w", "b"], ["t"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["t"], ["s"]),
        helper.make_node("Transpose", ["u"], ["turned"], perm=[3, 2, 0, 1]),
        helper.make_node("ConvTranspose", ["s", "turned"], ["y"], pads=[1, 1, 2, 2]),
    ]
    return one_node(nodes, (2, 8, 6, 6), (2, 6, 12, 12), held)


@pytest.mark.parametrize("recipe", ["default", "batude", "paper"])
def test_a_network_with_them_is_trained(tmp_path: Path, recipe: str) -> None:
    np.savez(tmp_path / "maps.npz", x_train=values(96, 8, 6, 6), x_test=values(32, 8, 6, 6, seed=1))
    settings = settings_for(saved(generator(), tmp_path), tmp_path, "2x", tmp_path / "maps.npz", epochs=2.0, recipe=recipe)
    verdict = compress(settings)
    check(verdict, settings)
    assert {"t", "y"} & set(verdict.ranks)
    # The paper's rules need far more than two epochs.
    assert verdict.comparison.quality_other["cosine"] > (0.3 if recipe == "paper" else 0.5)


@pytest.mark.parametrize(("metric", "simplify"), [("params", True), ("macs", False)])
def test_a_network_with_them_is_compressed_without_data(tmp_path: Path, metric: str, simplify: bool) -> None:
    settings = settings_for(saved(generator(), tmp_path), tmp_path, f"{metric}=1.7x", simplify=simplify)
    verdict = compress(settings)
    check(verdict, settings)
    assert {"t", "y"} & set(verdict.ranks)
