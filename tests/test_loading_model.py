"""Everything that can be wrong with a model file is one ModelError of one line; everything else loads unchanged."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from batude_onnx.errors import ModelError
from batude_onnx.loading.model import external_files, load_model
from tests.loading_models import conv_bn, model_of


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def saved(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def saved_external(folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(conv_bn(), path, save_as_external_data=True, location="model.bin", size_threshold=0)
    return path


def test_a_good_model_loads_as_it_is(tmp_path: Path) -> None:
    proto = conv_bn()
    model = load_model(saved(tmp_path / "m.onnx", proto))
    assert [node.op_type for node in model.graph] == ["Conv", "BatchNormalization", "Relu"]
    again = onnx_ir.to_proto(model)
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(again, field) == getattr(proto, field)
    assert list(again.opset_import) == list(proto.opset_import)
    assert list(again.metadata_props) == list(proto.metadata_props)
    assert list(again.graph.input) == list(proto.graph.input)
    assert list(again.graph.output) == list(proto.graph.output)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.onnx")
    assert "not a file" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"hello, this is text\n",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        bytes(1000),
        b"\x00",
        b"PK\x03\x04" + bytes(50),
        b'{"ir_version": 8}',
    ],
    ids=["text", "png", "zeros", "one zero", "zip", "json"],
)
def test_other_bytes_are_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert "not an ONNX model" in refusal(path)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.touch()
    assert "is empty" in refusal(path)


def test_random_bytes_are_never_a_model(tmp_path: Path) -> None:
    """Short random strings often parse as protobuf: the reason for looking further than the parser does."""
    generator = np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    parsed = 0
    for _ in range(300):
        content = generator.bytes(int(generator.integers(1, 12)))
        path.write_bytes(content)
        assert "not an ONNX model" in refusal(path)
        try:
            onnx.ModelProto.FromString(content)
            parsed += 1
        except Exception:  # protobuf's, which has no stubs
            continue
    assert parsed > 0


def test_a_model_cut_anywhere_is_refused(tmp_path: Path) -> None:
    model = conv_bn()
    del model.metadata_props[:]  # these come last, and a model without them is whole
    content = model.SerializeToString()
    path = tmp_path / "m.onnx"
    for size in range(1, len(content), 3):
        path.write_bytes(content[:size])
        refusal(path)
    path.write_bytes(content)
    load_model(path)


@pytest.mark.parametrize("part", ["node", "output"])
def test_a_graph_without_an_essential_part(tmp_path: Path, part: str) -> None:
    model = conv_bn()
    del getattr(model.graph, part)[:]
    assert f"no {part}s" in refusal(saved(tmp_path / "m.onnx", model))


def test_a_model_without_an_opset(tmp_path: Path) -> None:
    model = conv_bn()
    del model.opset_import[:]
    assert "no opset" in refusal(saved(tmp_path / "m.onnx", model))


def test_the_checker_is_asked(tmp_path: Path) -> None:
    model = conv_bn()
    model.graph.node[0].op_type = "Konv"
    assert "Konv" in refusal(saved(tmp_path / "m.onnx", model))


def test_a_model_from_the_future(tmp_path: Path) -> None:
    model = conv_bn()
    model.ir_version = 999
    assert "checker rejects" in refusal(saved(tmp_path / "m.onnx", model))


@pytest.mark.parametrize("external", [False, True])
def test_unsorted_nodes_are_sorted(tmp_path: Path, external: bool) -> None:
    model = conv_bn()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=external, size_threshold=0)
    assert [node.op_type for node in load_model(path).graph] == ["Conv", "BatchNormalization", "Relu"]


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    model = conv_bn()
    model.graph.node[0].input[0] = "y"
    assert "cycle" in refusal(saved(tmp_path / "m.onnx", model))


def test_an_input_from_nowhere_is_refused(tmp_path: Path) -> None:
    model = conv_bn()
    model.graph.node[0].input[0] = "nowhere"
    assert "nowhere" in refusal(saved(tmp_path / "m.onnx", model))


def test_external_data_is_mapped_from_any_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_external(tmp_path)
    monkeypatch.chdir(tmp_path)
    model = load_model(Path("model.onnx"))
    monkeypatch.chdir("/")
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, onnx_ir.ExternalTensor)
    assert tensor.raw is None, "the weight was read while loading"
    assert external_files(model) == (tmp_path / "model.bin",)
    np.testing.assert_array_equal(tensor.numpy(), numpy_helper.to_array(conv_bn().graph.initializer[0]))


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    path = saved_external(tmp_path)
    (tmp_path / "model.bin").unlink()
    message = refusal(path)
    assert "'model.bin'" in message
    assert "missing" in message


def test_a_data_file_cut_short(tmp_path: Path) -> None:
    path = saved_external(tmp_path)
    data = tmp_path / "model.bin"
    data.write_bytes(data.read_bytes()[:-4])
    assert "cut short" in refusal(path)


@pytest.mark.parametrize("location", ["../model.bin", "/etc/passwd", "sub/../../model.bin", ""])
def test_data_outside_of_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = saved_external(folder)
    (folder / "sub").mkdir()
    (tmp_path / "model.bin").write_bytes((folder / "model.bin").read_bytes())
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    assert "outside of the model's folder" in refusal(saved(path, model))


@pytest.mark.parametrize("location", ["a" * 300, "model\0.bin"])
def test_a_location_that_no_file_can_have(tmp_path: Path, location: str) -> None:
    path = saved_external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    assert "has unreadable external data fields" in refusal(saved(path, model))


def test_a_weight_of_a_type_that_onnx_does_not_have(tmp_path: Path) -> None:
    model = conv_bn()
    model.graph.initializer[0].data_type = 99
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert "is of the unknown type 99" in refusal(path)


def test_a_path_that_no_file_can_have(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / f"{'n' * 300}.onnx")
    loop = tmp_path / "loop.onnx"
    loop.symlink_to(loop)
    assert "no such file" in refusal(loop)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = saved_external(folder)
    (folder / "model.bin").rename(tmp_path / "elsewhere.bin")
    (folder / "model.bin").symlink_to(tmp_path / "elsewhere.bin")
    assert "outside of the model's folder" in refusal(path)


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_link_inside_the_folder_is_refused_with_what_to_do(tmp_path: Path, kind: str) -> None:
    path = saved_external(tmp_path)
    data = tmp_path / "model.bin"
    if kind == "hard":
        (tmp_path / "other.bin").hardlink_to(data)
    else:
        data.rename(tmp_path / "other.bin")
        data.symlink_to("other.bin")
    assert "put a copy of the file in its place" in refusal(path)


def test_a_link_to_a_model_with_external_data_is_refused(tmp_path: Path) -> None:
    """The data beside the link are another model's: neither those nor the right ones may be read by half of the tool."""
    (tmp_path / "real").mkdir()
    (tmp_path / "here").mkdir()
    path, link = saved_external(tmp_path / "real"), tmp_path / "here" / "model.onnx"
    link.symlink_to(path)
    assert str(path) in refusal(link)
    (tmp_path / "here" / "model.bin").write_bytes((tmp_path / "real" / "model.bin").read_bytes())
    assert str(path) in refusal(link)
    load_model(path)
    link.unlink()
    link.symlink_to(saved(tmp_path / "whole.onnx", conv_bn()))
    load_model(link)
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    load_model(tmp_path / "folder" / "model.onnx")


def test_quantization_annotations_are_refused_not_dropped(tmp_path: Path) -> None:
    model = conv_bn()
    model.graph.quantization_annotation.add().tensor_name = "c"
    message = refusal(saved(tmp_path / "m.onnx", model))
    assert re.search(r"1 quantization annotations \(of c\)", message)
    # The twin: onnx-ir itself says nothing.
    assert not onnx_ir.to_proto(onnx_ir.from_proto(model)).graph.quantization_annotation


def _sparse(name: str) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([1.0, 2.0], dtype=np.float32), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 2], dtype=np.int64)), [4])


def test_sparse_initializers_are_refused_not_dropped(tmp_path: Path) -> None:
    model = conv_bn()
    model.graph.sparse_initializer.append(_sparse("thin"))
    message = refusal(saved(tmp_path / "m.onnx", model))
    assert "1 sparse initializers (thin)" in message
    assert not onnx_ir.to_proto(onnx_ir.from_proto(model)).graph.sparse_initializer


def test_they_are_found_inside_of_branches_too(tmp_path: Path) -> None:
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    branches = {
        name: helper.make_graph(
            [helper.make_node("Identity", ["x"], [name])], name, [], [helper.make_tensor_value_info(name, 1, [4])]
        )
        for name in ("then_branch", "else_branch")
    }
    branches["else_branch"].sparse_initializer.append(_sparse("deep"))
    model = model_of(
        [helper.make_node("If", ["c"], ["y"], **branches)],
        [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [y],
    )
    assert "(deep)" in refusal(saved(tmp_path / "m.onnx", model))
