"""onnxsim folds the inside; the outside of the model stays what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxsim
import pytest
from onnx import TensorProto, helper

from batude_onnx.errors import ParityError
from batude_onnx.loading import load_model
from batude_onnx.simplify import onnxsim_pass, simplify, skip_reason
from batude_onnx.validation import compare, open_session, require
from tests.loading_models import FLOAT, conv_bn, model_of


def simplified(proto: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    result: onnx.ModelProto = onnx_ir.to_proto(simplify(onnx_ir.from_proto(proto), **options))
    onnx.checker.check_model(result)
    return result


def check_same_outputs(before: onnx.ModelProto, after: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    reference, got = (open_session(model.SerializeToString(), threads=1).run({"x": x}) for model in (before, after))
    require(compare(reference, got), "simplify")


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_batchnorm_is_folded_and_the_batch_stays_open() -> None:
    after = simplified(conv_bn())
    assert ops(after) == ["Conv", "Relu"]
    assert after.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    for batch in (1, 5):
        check_same_outputs(conv_bn(), after, (batch, 3, 8, 8))


FIELDS = ["ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"]


@pytest.mark.parametrize("field", [*FIELDS, "opset_import", "metadata_props"])
def test_the_models_own_fields_are_kept(field: str) -> None:
    assert getattr(simplified(conv_bn()), field) == getattr(conv_bn(), field)


@pytest.mark.parametrize("field", ["producer_name", "metadata_props", "doc_string"])
def test_what_was_not_there_is_not_added(field: str) -> None:
    model = conv_bn()
    model.ClearField(field)
    assert not getattr(simplified(model), field)


@pytest.mark.parametrize("field", ["name", "doc_string", "input", "output"])
def test_the_graphs_outside_is_kept(field: str) -> None:
    assert getattr(simplified(conv_bn()).graph, field) == getattr(conv_bn().graph, field)


def test_nodes_that_stay_keep_name_and_doc_string() -> None:
    model = conv_bn()
    model.graph.node[2].metadata_props.add(key="who", value="me")
    after = simplified(model)
    assert [(node.name, node.doc_string) for node in after.graph.node] == [("conv", "the conv"), ("relu", "the relu")]
    assert [(prop.key, prop.value) for prop in after.graph.node[1].metadata_props] == [("who", "me")]


def test_doc_strings_and_metadata_that_onnxsim_drops_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnxsim.simplify

    def forgetful(model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, bool]:
        result, same = real(model, **options)
        for message in (result, result.graph, *result.graph.node, *result.graph.input):
            message.ClearField("doc_string")
        result.producer_name = "onnxsim"
        return result, same

    monkeypatch.setattr(onnxsim, "simplify", forgetful)
    after = simplified(conv_bn())
    assert (after.doc_string, after.graph.doc_string, after.producer_name) == ("a model", "a graph", "maker")
    assert [node.doc_string for node in after.graph.node] == ["the conv", "the relu"]
    assert after.graph.input[0].doc_string == "the image"


def test_names_and_order_of_several_inputs_and_outputs() -> None:
    def value(name: str, kind: int = FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, ["batch", "length"])

    model = model_of(
        [
            helper.make_node("Shape", ["b"], ["s"]),
            helper.make_node("Cast", ["a"], ["second"], to=TensorProto.FLOAT16),
            helper.make_node("Identity", ["b"], ["b2"]),
            helper.make_node("Add", ["a", "b2"], ["first"]),
        ],
        [value("b"), value("a")],
        [value("second", TensorProto.FLOAT16), value("first"), helper.make_tensor_value_info("s", TensorProto.INT64, [2])],
    )
    for feeds in (None, {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 3), np.float32)}):
        after = simplified(model, feeds=feeds)
        assert list(after.graph.input) == list(model.graph.input)
        assert list(after.graph.output) == list(model.graph.output)
        assert "Identity" not in ops(after)


@pytest.mark.parametrize("feeds", [None, {"x": np.ones((2, 3, 10, 12), np.float32)}], ids=["without", "with"])
def test_open_height_and_width(feeds: dict[str, np.ndarray] | None) -> None:
    model = conv_bn(height="H", width="W")
    after = simplified(model, feeds=feeds)
    assert ops(after) == ["Conv", "Relu"]
    assert list(after.graph.input) == list(model.graph.input)
    check_same_outputs(model, after, (2, 3, 7, 9))


@pytest.mark.parametrize(("opset", "ir_version"), [(9, 3), (9, 4), (13, 7), (18, 8), (21, 10)])
def test_old_and_new_versions_stay(opset: int, ir_version: int) -> None:
    model = conv_bn(opset=opset, ir_version=ir_version)
    after = simplified(model)
    assert (after.ir_version, after.opset_import[0].version) == (ir_version, opset)
    held = {tensor.name for tensor in after.graph.initializer}
    assert [value.name for value in after.graph.input if value.name not in held] == ["x"]
    check_same_outputs(model, after, (2, 3, 8, 8))


def test_an_opset_domain_that_is_not_used_stays() -> None:
    model = conv_bn()
    model.opset_import.append(helper.make_opsetid("org.example", 2))
    assert simplified(model).opset_import == model.opset_import


def test_the_model_given_stays_as_it_was() -> None:
    model = onnx_ir.from_proto(conv_bn())
    before = onnx_ir.to_proto(model).SerializeToString(deterministic=True)
    simplify(model)
    assert onnx_ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_external_weights(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(conv_bn(), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    model = load_model(path)
    after = onnx_ir.to_proto(simplify(model))
    assert ops(after) == ["Conv", "Relu"]
    check_same_outputs(conv_bn(), after, (2, 3, 8, 8))
    assert isinstance(model.graph.initializers["w"].const_value, onnx_ir.ExternalTensor)


def test_it_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    simplified(conv_bn())
    simplified(conv_bn(height="H", width="W"))
    assert capfd.readouterr() == ("", "")


def test_a_failed_check_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxsim, "simplify", lambda model, **options: (model, False))
    with pytest.raises(ParityError, match="computes something else"):
        simplified(conv_bn())


def test_the_check_is_really_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxsim's own comparison is given a result with one weight changed, and must see it."""
    core = onnxsim.onnx_simplifier.C
    real = core.simplify

    def wrong(*arguments: Any) -> Any:
        model = onnx.load_from_string(real(*arguments))
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 1:
                tensor.ClearField("float_data")
                tensor.raw_data = np.zeros(tensor.dims[0], np.float32).tobytes()
        return model.SerializeToString()

    monkeypatch.setattr(core, "simplify", wrong)
    with pytest.raises(ParityError, match="computes something else"):
        simplified(conv_bn())


def _renamed_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "z"


def _lost_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "z"


def _newer(model: onnx.ModelProto) -> None:
    model.opset_import[0].version += 1


def _newer_ir(model: onnx.ModelProto) -> None:
    model.ir_version += 1


@pytest.mark.parametrize(
    ("change", "what"), [(_renamed_input, "inputs"), (_lost_output, "outputs"), (_newer, "opset"), (_newer_ir, "IR version")]
)
def test_a_result_with_another_outside_is_refused(monkeypatch: pytest.MonkeyPatch, change: Any, what: str) -> None:
    def changed(model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, bool]:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        change(copy)
        return copy, True

    monkeypatch.setattr(onnxsim, "simplify", changed)
    with pytest.raises(ParityError, match=f"changed the model's {what}"):
        simplified(conv_bn())


def test_an_op_that_onnxsim_cannot_run_is_one_line() -> None:
    model = conv_bn()
    model.graph.node[2].op_type, model.graph.node[2].domain = "Mystery", "org.example"
    model.opset_import.append(helper.make_opsetid("org.example", 1))
    with pytest.raises(ParityError, match="onnxsim cannot simplify this model") as caught:
        simplified(model)
    assert "\n" not in str(caught.value)
    assert "--no-simplify" in str(caught.value)


def test_a_model_above_the_limit_is_left_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx_ir.from_proto(conv_bn())
    assert skip_reason(model) is None
    monkeypatch.setattr(onnxsim_pass, "LARGEST_BYTES", 100)
    assert simplify(model) is model
    assert "its weights are 0.0 GB" in str(skip_reason(model))
