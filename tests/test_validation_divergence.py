"""Where two graphs part: the first node in the graph's order, whatever comes after it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from batude_onnx import pipeline, surgery
from batude_onnx.errors import ParityError
from batude_onnx.pipeline import compress, validate
from batude_onnx.records import Divergence, OutputDifference
from batude_onnx.rewriting import rewrite
from batude_onnx.validation import first_divergence
from tests.layer_models import values
from tests.loading_models import FLOAT, model_of
from tests.pipelines import saved, settings_for
from tests.rewritings import chains_of
from tests.rich_models import rich


def chain(*, batch: int | str = "N", without: str = "") -> onnx.ModelProto:
    """x (N, 3, 6, 6) -> conv1 -> relu1 -> conv2 -> + -> y, beside a side branch of integers and a sequence."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Shape", ["r1"], ["s"], name="shape"),
        helper.make_node("SequenceConstruct", ["r1", "c1"], ["q"], name="both"),
        helper.make_node("SequenceAt", ["q", "zero"], ["e"], name="at"),
        helper.make_node("Conv", ["e", "w2"], ["c2"], name="", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["y"], name="add"),
    ]
    held = {"w1": values(8, 3, 3, 3, seed=1), "w2": values(8, 8, 3, 3, seed=2), "zero": np.array(0)}
    for node in nodes:
        if without and without in node.output:
            node.output[0] = f"{without}.renamed"
        for place, name in enumerate(node.input):
            if without and name == without:
                node.input[place] = f"{without}.renamed"
    outputs = [
        helper.make_tensor_value_info("y", FLOAT, [batch, 8, 6, 6]),
        helper.make_tensor_value_info("s", TensorProto.INT64, [4]),
    ]
    return model_of(nodes, [helper.make_tensor_value_info("x", FLOAT, [batch, 3, 6, 6])], outputs, held)


def changed(proto: onnx.ModelProto, weight: str, by: float) -> onnx.ModelProto:
    held = next(tensor for tensor in proto.graph.initializer if tensor.name == weight)
    held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held) + np.float32(by), weight))
    return proto


def found(a: onnx.ModelProto, b: onnx.ModelProto, samples: int = 3) -> Divergence | None:
    return first_divergence(ir.from_proto(a), ir.from_proto(b), {"x": values(samples, 3, 6, 6)}, threads=1)


@pytest.mark.parametrize(("weight", "node", "op", "value"), [("w1", "conv1", "Conv", "c1"), ("w2", "c2", "Conv", "c2")])
@pytest.mark.parametrize("batch", ["N", 1, 2])
def test_the_first_node_is_named(weight: str, node: str, op: str, value: str, batch: int | str) -> None:
    """A node without a name by what it gives. All that comes after it differs as well."""
    divergence = found(chain(batch=batch), changed(chain(batch=batch), weight, 0.05), 4)
    assert divergence is not None
    assert (divergence.node, divergence.op, divergence.difference.output) == (node, op, value)
    assert divergence.difference.max_absolute > 0.01
    assert not divergence.difference.within


def test_equal_graphs_do_not_part() -> None:
    assert found(chain(), chain()) is None
    assert found(chain(), changed(chain(), "w1", 1e-8)) is None


def test_values_that_only_one_graph_has_are_passed_over() -> None:
    divergence = found(chain(), changed(chain(without="c1"), "w1", 0.05))
    assert divergence is not None
    assert divergence.node == "relu1"


def test_the_sample_that_shows_it_is_found() -> None:
    """The last one: all before it are zero, and give the same whatever the weights are."""
    x = values(5, 3, 6, 6)
    x[:4] = 0
    divergence = first_divergence(ir.from_proto(chain()), ir.from_proto(changed(chain(), "w1", 0.05)), {"x": x}, threads=1)
    assert divergence is not None
    assert divergence.node == "conv1"


def test_it_is_the_layer_that_was_truncated() -> None:
    """With several inputs, a branch, a function and a sequence, of which the twin at full rank has no difference."""
    model = ir.from_proto(rich())
    feeds = {"x": values(2, 4, 7, 6), "flag": np.array(True)}
    cases: list[tuple[dict[str, tuple[int, ...]] | None, str | None]] = [({"a": (3, 3)}, "first"), ({"c": (3, 3)}, "second")]
    for ranks, node in (*cases, (None, None)):
        divergence = first_divergence(model, rewrite(model, chains_of(model, ranks)), feeds, threads=1)
        assert (divergence.node if divergence else None) == node


def test_it_reads_as_one_line() -> None:
    text = str(Divergence("conv1", "Conv", OutputDifference("c1", 0.12345, 0.5, 0.9, within=False)))
    assert text == "the first to differ is node 'conv1' (Conv; value 'c1' by 0.123, relative 0.5)"


def test_validate_looks_for_it_only_where_outputs_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = saved(chain(), tmp_path)
    second = saved(changed(chain(), "w2", 0.05), tmp_path, "second.onnx")
    divergence = validate(first, second, threads=1).divergence
    assert divergence is not None
    assert divergence.difference.output == "c2"
    monkeypatch.setattr(pipeline, "origin_of", None)
    assert validate(first, first, threads=1).divergence is None


def test_a_proof_that_fails_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The surgery spoils the second layer's bias alone."""

    def spoiled(model: ir.Model, chains: object, **changes: object) -> ir.Model:
        made = rewrite(model, chains, **changes)  # type: ignore[arg-type]
        for name, value in made.graph.initializers.items():
            if name.startswith("c2_factor1") and value.const_value is not None:
                value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.1), name=name)
        return made

    monkeypatch.setattr(surgery, "rewrite", spoiled)
    with pytest.raises(
        ParityError, match=r"equal the original.* the first to differ is node 'c2' \(Conv; value 'c2' by .*; nothing was"
    ):
        compress(settings_for(saved(chain(), tmp_path), tmp_path, "1.5x"))


def test_a_written_file_that_is_wrong_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(model: ir.Model, shapes: object) -> ir.Model:
        held = model.graph.initializers["w1"]  # left whole
        assert held.const_value is not None
        held.const_value = ir.tensor(held.const_value.numpy() * np.float32(1.1), name=held.name)
        return model

    monkeypatch.setattr(pipeline, "simplify", spoiled)
    with pytest.raises(ParityError, match=r"what was trained.* the first to differ is node 'conv1' \(Conv; value 'c1' by"):
        compress(settings_for(saved(chain(), tmp_path), tmp_path, "1.5x"))
