"""Layers in bodies of If and Loop and in functions: found under distinct names, rewritten in place, all else as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from batude_onnx.errors import DataError
from batude_onnx.layers import constants_by_name, count, distinct, infer_shapes, nodes_by_key
from batude_onnx.loading import fidelity, load_model, save_model
from batude_onnx.pipeline import compress, inspect
from batude_onnx.rewriting import rewrite
from tests.body_models import nested
from tests.layer_models import values
from tests.loading_models import FLOAT, model_of
from tests.pipelines import Listener, saved, settings_for
from tests.rewritings import ATOL, RTOL, chains_of, outputs

# Attributes are in the order of their names, so the else branch comes first.
PLACES = {
    "a": (),
    "c": ("If",),
    "t": ("If",),
    "l": ("If", "Loop"),
    "c@2": ("If",),
    "d@2": ("If",),
    "c@3": ("function Block",),
    "y@2": ("function Block",),
}
SHARED = "its weight shared is shared by 2 nodes"
SIZE = 8 * 8 * 9


def feeds(flag: bool) -> dict[str, np.ndarray]:
    return {"x": values(2, 4, 6, 6, seed=11), "flag": np.array(flag)}


def test_every_layer_is_found_where_it_stands(tmp_path: Path) -> None:
    path = saved(nested(), tmp_path)
    seen = inspect(path)
    assert {site.key: site.inside for site in seen.sites} == PLACES
    assert {site.key: site.reason for site in seen.sites if site.reason} == {
        "t": SHARED, "d@2": SHARED, "y@2": "its strides differs from call to call of the function",
    }  # fmt: skip
    positions = {site.key: site.positions for site in seen.sites if not site.reason}
    assert positions == {"a": 36, "c": 36, "c@2": 36, "l": 0, "c@3": 0}, "how often a loop or a function runs is not known"
    assert seen.cost.params == 8 * 4 * 9 + 6 * SIZE + 8
    model = load_model(path)
    assert [nodes_by_key(model)[key].name for key in ("c", "c@2", "l", "c@3")] == [
        "else", "then", "in the loop", "in the function",
    ]  # fmt: skip
    assert {site.weight for site in seen.compressible} == {"w_a", "k", "k@2", "w_loop", "k@3"}
    assert {"k", "k@2", "k@3"} <= constants_by_name(model).keys()


def test_a_copy_with_distinct_names_leaves_the_model_as_it_was() -> None:
    model = ir.from_proto(nested())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    renamed = distinct(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert renamed is not model
    assert distinct(renamed) is renamed
    first, second = outputs(nested(), **feeds(False)), outputs(ir.to_proto(renamed), **feeds(False))
    np.testing.assert_array_equal(first["y"], second["y"])


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("chosen", [("c",), ("c@2",), ("l",), ("c@3",), ("a", "c", "c@2", "l", "c@3")], ids="-".join)
def test_layers_are_rewritten_in_place(tmp_path: Path, chosen: tuple[str, ...], flag: bool) -> None:
    path = saved(nested(), tmp_path)
    model = load_model(path)
    chains = {key: chain for key, chain in chains_of(distinct(model)).items() if key in chosen}
    assert set(chains) == set(chosen)
    save_model(rewrite(model, chains), tmp_path / "out.onnx")
    after = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(after, full_check=True)
    np.testing.assert_allclose(outputs(after, **feeds(flag))["y"], outputs(nested(), **feeds(flag))["y"], rtol=1e-4, atol=1e-4)
    expect_the_rest(nested(), after, len(chosen))


def test_a_wrong_weight_in_a_body_shows(tmp_path: Path) -> None:
    """The twin: the branches that a run takes are those that are compared."""
    model = load_model(saved(nested(), tmp_path))
    wrong = rewrite(model, {}, weights={"k@2": values(8, 8, 3, 3, seed=9)})
    for flag, equal in ((True, False), (False, True)):
        found, wanted = (outputs(proto, **feeds(flag))["y"] for proto in (ir.to_proto(wrong), nested()))
        assert np.allclose(found, wanted, rtol=RTOL, atol=ATOL) == equal


def scopes(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    def inner(nodes: list[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield attribute.g
                    yield from inner(list(attribute.g.node))

    yield proto.graph
    yield from inner(list(proto.graph.node))
    yield from proto.functions


def expect_the_rest(before: onnx.ModelProto, after: onnx.ModelProto, replaced: int) -> None:
    """Each graph, body and function field by field, without its chains, replaced layers, and what only these read."""
    gone = 0
    for old, new in zip(scopes(before), scopes(after), strict=True):
        for field in {*old.DESCRIPTOR.fields_by_name} - {"node", "initializer", "value_info"}:
            assert getattr(new, field) == getattr(old, field), field
        added = [node for node in new.node if "_factor" in node.name]
        ends = {node.output[0] for node in added}
        lost = [node for node in old.node if node.output[0] in ends]
        gone += len(lost)
        read = {name for node in old.node if node not in lost for name in node.input}
        alone = {name for node in lost for name in node.input[1:]} - read
        assert [bare(node) for node in new.node if node not in added] == [
            bare(node) for node in old.node if node not in lost and node.output[0] not in alone
        ]
    assert gone == replaced


def bare(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node without what stands in its bodies, which are looked at themselves."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        attribute.ClearField("g")
    return copy


def test_onnx_ir_alone_does_not_keep_the_rest(tmp_path: Path) -> None:
    """The twin: without what puts it back, bodies and functions are not as they were."""
    model = load_model(saved(nested(), tmp_path))
    chains = chains_of(distinct(model), dict.fromkeys(("c", "c@3"), (3, 3)))
    edited = rewrite(model, chains)
    edited.meta.pop(fidelity.SOURCE)
    with pytest.raises(AssertionError):
        expect_the_rest(nested(), ir.to_proto(edited), 2)


def test_a_whole_run_without_data(tmp_path: Path) -> None:
    settings = settings_for(saved(nested(), tmp_path), tmp_path, "1.5x", simplify=False)
    verdict = compress(settings)
    assert set(verdict.ranks) & {"c", "c@2"}
    assert set(verdict.ranks) | set(verdict.whole) == set(PLACES)
    after = load_model(settings.output)
    assert count(after, infer_shapes(after)).params == verdict.comparison.cost_other.params <= verdict.budget.limits[0].limit


def runs_file(folder: Path, *flags: bool) -> Path:
    x = np.stack([values(2, 4, 6, 6, seed=50 + number) for number in range(len(flags))])
    np.savez(folder / "runs.npz", x=x, flag=np.array(flags))
    return folder / "runs.npz"


@pytest.mark.parametrize("epochs", [0.0, 2.0])
def test_several_inputs_are_given_run_by_run(tmp_path: Path, epochs: float) -> None:
    # The function's two layers are two for each of its calls then.
    data, listener = runs_file(tmp_path, False, True, False, True), Listener()
    settings = settings_for(saved(nested(), tmp_path), tmp_path, "1.5x", data, simplify=False, epochs=epochs)
    verdict = compress(settings, listener)
    assert "4 runs of 2 inputs" in listener.said
    assert any(line.endswith(": the model has 2 inputs") for line in listener.said)
    assert ("measuring layers", 8, 8) in listener.counted
    assert set(verdict.ranks) & {"c", "l", "c@2"}
    assert verdict.comparison.cost_other.params <= verdict.budget.limits[0].limit


def test_what_no_run_reaches_stays_whole(tmp_path: Path) -> None:
    settings = settings_for(saved(nested(), tmp_path), tmp_path, "1.2x", runs_file(tmp_path, True), simplify=False, epochs=0.0)
    verdict = compress(settings)
    assert {key for key, reason in verdict.whole.items() if reason == "no sample reaches it"} == {"c", "l"}


def test_what_is_seen_in_bodies_makes_better_factors(tmp_path: Path) -> None:
    """The twin of all that is measured: by the weights alone the same budget loses more."""
    data, path = runs_file(tmp_path, *[False, True] * 8), saved(nested(), tmp_path)
    far = []
    for given in (data, None):
        compress(settings_for(path, tmp_path, "1.5x", given, simplify=False, epochs=0.0))
        found = [outputs(onnx.load(tmp_path / "out.onnx"), **feeds(flag))["y"] for flag in (True, False)]
        wanted = [outputs(nested(), **feeds(flag))["y"] for flag in (True, False)]
        far.append(sum(float(np.square(a - b).mean() / b.var()) for a, b in zip(found, wanted, strict=True)))
    assert far[0] < far[1], far


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (
            {"x": values(3, 2, 4, 6, 6)},
            "wants an array 'flag' whose first axis counts the runs; keys found: x",
        ),
        ({"x": values(3, 2, 4, 5, 6), "flag": np.ones(3, bool)}, "not one of shape (3, 2, 4, 5, 6)"),
        ({"x": values(3, 2, 4, 6, 6), "flag": np.ones(3)}, "not one of float64"),
        ({"x": values(3, 2, 4, 6, 6), "flag": np.ones(2, bool)}, "the arrays hold {'x': 3, 'flag': 2} runs"),
    ],
)
def test_runs_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "runs.npz", **arrays)
    with pytest.raises(DataError, match=re.escape(said)):
        compress(settings_for(saved(nested(), tmp_path), tmp_path, "1.5x", tmp_path / "runs.npz"))


def test_macs_are_limited_where_only_layers_that_stay_cannot_be_counted(tmp_path: Path) -> None:
    """The product in the loop takes a weight that is handed from round to round, in sizes that are known to its runs."""
    node = helper.make_node
    body = helper.make_graph(
        [node("MatMul", ["v", "m"], ["u"]), node("Tanh", ["u"], ["next"]), node("Identity", ["go"], ["goes"]),
         node("Identity", ["m"], ["handed"])],
        "body",
        [helper.make_tensor_value_info("step", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", FLOAT, None), helper.make_tensor_value_info("m", FLOAT, None)],
        [helper.make_tensor_value_info("goes", TensorProto.BOOL, []), helper.make_tensor_value_info("next", FLOAT, None),
         helper.make_tensor_value_info("handed", FLOAT, None)],
    )  # fmt: skip
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1] * 4), node("Conv", ["c", "k"], ["d"]), node("GlobalAveragePool", ["d"], ["p"]),
        node("Flatten", ["p"], ["f"]), node("Loop", ["three", "", "f", "weight"], ["y", "same"], body=body),
    ]  # fmt: skip
    held = {"w": values(16, 8, 3, 3), "k": values(12, 16, 1, 1), "three": np.array(3), "weight": values(12, 12)}
    x, y = helper.make_tensor_value_info("x", FLOAT, ["N", 8, 6, 6]), helper.make_tensor_value_info("y", FLOAT, ["N", 12])
    settings, told = (
        settings_for(saved(model_of(nodes, [x], [y], held), tmp_path), tmp_path, "macs=1.5x", simplify=False),
        Listener(),
    )
    verdict = compress(settings, told)
    assert "the MACs of 1 layers that stay as they are (u, ...) are not known: they are left out of all counts" in told.said
    assert verdict.comparison.cost_original.macs == (16 * 8 * 9 + 12 * 16) * 36
    assert verdict.comparison.cost_other.macs <= verdict.comparison.cost_original.macs / 1.5


def test_a_limit_of_macs_leaves_alone_what_cannot_be_counted(tmp_path: Path) -> None:
    """A layer in a loop might be made smaller, but not for a limit of what nobody knows."""
    node = helper.make_node
    body = helper.make_graph(
        [node("MatMul", ["v", "weight"], ["u"]), node("Tanh", ["u"], ["next"]), node("Identity", ["go"], ["goes"])],
        "body",
        [helper.make_tensor_value_info("step", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", FLOAT, None)],
        [helper.make_tensor_value_info("goes", TensorProto.BOOL, []), helper.make_tensor_value_info("next", FLOAT, None)],
    )  # fmt: skip
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1] * 4), node("GlobalAveragePool", ["c"], ["p"]), node("Flatten", ["p"], ["f"]),
        node("Loop", ["three", "", "f"], ["y"], body=body),
    ]  # fmt: skip
    held = {"w": values(12, 8, 3, 3), "three": np.array(3), "weight": values(12, 12)}
    x, y = helper.make_tensor_value_info("x", FLOAT, ["N", 8, 6, 6]), helper.make_tensor_value_info("y", FLOAT, ["N", 12])
    path = saved(model_of(nodes, [x], [y], held), tmp_path)
    verdict = compress(settings_for(path, tmp_path, "macs=1.5x", simplify=False))
    assert set(verdict.ranks) == {"c"}
    assert "its MACs cannot be counted" in verdict.whole["u"]
