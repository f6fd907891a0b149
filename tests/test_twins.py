"""Nodes that share a weight: one layer, factored once, wherever it is run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from batude_onnx import speed
from batude_onnx.decomposition import assign, method_of
from batude_onnx.layers import find_sites, infer_shapes
from batude_onnx.pipeline import compress, inspect
from batude_onnx.rewriting import rewrite
from batude_onnx.validation import pieces, sessions
from tests.layer_models import read, values
from tests.loading_models import model_of
from tests.pipelines import Listener, check, saved, settings_for, stored

FLOAT = TensorProto.FLOAT
HEAD: dict[str, Any] = {"pads": [1, 1, 1, 1]}


def pyramid(**second: list[int]) -> onnx.ModelProto:
    """A detector's head: the same two convolutions on maps of three sizes; `second`: other attributes of one of them."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["p1"], **HEAD),
        helper.make_node("MaxPool", ["p1"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("MaxPool", ["p2"], ["p3"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    for level in "123":
        nodes += [
            helper.make_node("Conv", [f"p{level}", "u", "b"], [f"h{level}"], **HEAD),
            helper.make_node("Relu", [f"h{level}"], [f"r{level}"]),
            helper.make_node("Conv", [f"r{level}", "v"], [f"o{level}"], **(second if second and level == "2" else HEAD)),
            helper.make_node("GlobalAveragePool", [f"o{level}"], [f"g{level}"]),
        ]
    nodes.append(helper.make_node("Concat", ["g1", "g2", "g3"], ["y"], axis=1))
    held = {
        "w": values(16, 3, 3, 3),
        "u": values(16, 16, 3, 3, seed=1),
        "b": values(16, seed=2),
        "v": values(12, 16, 3, 3, seed=3),
    }
    x = helper.make_tensor_value_info("x", FLOAT, ["N", 3, 12, 12])
    y = helper.make_tensor_value_info("y", FLOAT, ["N", 36, 1, 1])
    return model_of(nodes, [x], [y], held, opset=18, ir_version=10)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    np.savez(tmp_path / "x.npz", x_train=values(64, 3, 12, 12, seed=5))
    return tmp_path / "x.npz"


def test_they_are_one_layer_that_is_run_in_several_places(tmp_path: Path) -> None:
    seen = inspect(saved(pyramid(), tmp_path))
    assert [(site.key, site.twins) for site in seen.sites] == [("p1", ()), ("h1", ("h2", "h3")), ("o1", ("o2", "o3"))]
    places = 12 * 12 + 6 * 6 + 3 * 3
    assert [site.macs for site in seen.sites] == [16 * 27 * 144, 16 * 144 * places, 12 * 144 * places]
    assert seen.cost.macs == sum(site.macs for site in seen.sites)
    assert seen.cost.params == 16 * 27 + 16 * 144 + 16 + 12 * 144


def test_nodes_that_compute_differently_with_one_weight_stay_whole(tmp_path: Path) -> None:
    seen = inspect(saved(pyramid(pads=[0, 0, 0, 0]), tmp_path))
    assert [site.reason for site in seen.sites if site.weight != "w"][:1] == [None]
    shared = {site.key: site.reason for site in seen.sites if site.key.startswith("o")}
    assert shared == dict.fromkeys(["o1", "o2", "o3"], "its weight v is shared by 3 nodes")


def test_another_bias_makes_another_layer() -> None:
    proto = pyramid()
    next(node for node in proto.graph.node if node.output[0] == "h3").input[2] = "b3"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(values(16), "b3"))
    model = read(proto)
    reasons = [site.reason for site in find_sites(model, infer_shapes(model)) if site.key.startswith("h")]
    assert reasons == ["its weight u is shared by 3 nodes"] * 3


def test_of_unlike_nodes_only_the_chosen_one_is_replaced() -> None:
    model = read(pyramid(pads=[0, 0, 0, 0]))
    (site,) = (assign(site) for site in find_sites(model, infer_shapes(model)) if site.key == "h1")
    chain = method_of(site).factor(torch.from_numpy(values(12, 16, 3, 3, seed=3)), None, site.geometry, (4, 4), None)
    written = rewrite(model, {"o1": chain})
    kept = {node.outputs[0].name for node in written.graph if "v" in [value.name for value in node.inputs if value is not None]}
    assert kept == {"o2", "o3"}


@pytest.mark.parametrize("metric", ["", "macs="])
@pytest.mark.parametrize("epochs", [None, 0.0, 2.0], ids=["no data", "re-fitted", "trained"])
def test_they_are_factored_together(tmp_path: Path, samples: Path, epochs: float | None, metric: str) -> None:
    path = saved(pyramid(), tmp_path)
    more = {} if epochs is None else {"epochs": epochs}
    settings = settings_for(path, tmp_path, f"{metric}2x", None if epochs is None else samples, **more)
    verdict = compress(settings)
    check(verdict, settings)
    assert {"h1", "o1"} <= set(verdict.ranks)
    after = onnx.load(settings.output)
    readers = Counter(node.input[1] for node in after.graph.node if node.op_type == "Conv")
    chains = len([name for name in readers if name.startswith(("h1", "o1"))])
    assert chains >= 4
    assert all(readers[name] == 3 for name in readers if name.startswith(("h1", "o1")))
    assert stored(settings.output) == verdict.comparison.cost_other.params
    assert all(difference.within for difference in (*verdict.surgery, *verdict.parity))


def test_a_bias_that_training_moves_moves_in_all_places(tmp_path: Path, samples: Path) -> None:
    """Also of a layer that stays whole."""
    settings = settings_for(saved(pyramid(), tmp_path), tmp_path, "1.1x", samples, epochs=2.0)
    check(compress(settings), settings)
    after = onnx.load(settings.output)
    last = [node for node in after.graph.node if node.output[0] in ("h1", "h2", "h3")]
    assert len({node.input[2] for node in last}) == 1


@pytest.mark.alone
def test_their_times_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.observing, "SECONDS", 0.02)
    monkeypatch.setattr(speed.observing, "PLAIN_SECONDS", 0.02)
    # What is recorded counts the profiler's own work, too: more than so small a network takes.
    monkeypatch.setattr(speed.model, "beyond", lambda seen: (1.0, 0.0))
    model = read(pyramid())
    sites = [site for site in find_sites(model, infer_shapes(model)) if site.twins]
    sites = [assign(site) for site in sites]
    times = speed.model.measure(model, sites, {"x": values(1, 3, 12, 12)}, 8, "cpu", 1, lambda done, total: None)
    assert set(times.whole) == {"h1", "o1"}
    assert times.total > sum(times.whole.values())


def test_a_model_run_in_pieces_leaves_them_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(pyramid(), path, save_as_external_data=True, location="model.bin", size_threshold=100)
    monkeypatch.setattr(sessions, "WHOLE_BYTES", 0)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1000)
    settings, watch = settings_for(path, tmp_path, "params=4400", simplify=False), Listener()
    verdict = compress(settings, watch)
    assert set(verdict.ranks) == {"p1"}
    assert verdict.whole["h1"] == "several nodes share its weight, and a model this large is run in pieces"
    check(verdict, settings)
