"""Statistics from onnxruntime against the same from torch, and against a run by hand where they are those of bodies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional as F

from batude_onnx import calibration
from batude_onnx.importer import import_graph
from batude_onnx.layers import nodes_by_key, read_bias, read_weight
from batude_onnx.proving import survey
from batude_onnx.records import Site
from batude_onnx.training.features import Sums, collect, patches
from tests.body_models import nested
from tests.layer_models import LAYERS, values

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
