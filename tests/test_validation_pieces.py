"""A graph in pieces computes what it computes whole, wherever it is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from onnx import TensorProto, helper

from batude_onnx.errors import ModelError
from batude_onnx.loading import load_model
from batude_onnx.validation import open_graph, open_session, pieces, sessions
from batude_onnx.validation.pieces import cut, weight_bytes
from tests.layer_models import PLACES, conv_with_weight_in, values
from tests.loading_models import FLOAT, model_of
from tests.random_networks import Network, networks
from tests.rich_models import rich
from tests.small_models import network as small
from tests.test_properties import tried

Arrays = dict[str, npt.NDArray[np.generic]]


@pytest.fixture
def node_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model counts as large, and every node with a weight is a piece of its own."""
    monkeypatch.setattr(sessions, "WHOLE_BYTES", -1)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 0)


def same(proto: onnx.ModelProto, feeds: Arrays) -> int:
    """Hold the two against each other; the number of pieces."""
    whole = open_session(proto.SerializeToString(), threads=1).run(feeds)
    model = ir.from_proto(proto)
    session = open_graph(model, threads=1)
    assert not session.whole
    found = session.run(feeds)
    assert list(found) == list(whole)
    for name, array in whole.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)
    return len(cut(model.graph, 0))


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.usefixtures("node_by_node")
def test_branches_functions_sequences_and_outputs_on_the_way(flag: bool) -> None:
    assert same(rich(), {"x": values(2, 4, 7, 6, seed=9), "flag": np.array(flag)}) > 4


@pytest.mark.usefixtures("node_by_node")
def test_every_kind_of_layer() -> None:
    assert same(small(), {"x": values(3, 3, 8, 8, seed=9)}) == 7


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("node_by_node")
def test_a_weight_goes_with_the_node_that_reads_it(place: str) -> None:
    """So that a layer can be found, and replaced, in its piece."""
    proto = conv_with_weight_in(place)
    assert same(proto, {"x": values(2, 4, 9, 8, seed=9)}) == 1
    (piece,) = cut(ir.from_proto(proto).graph, 0)
    assert [value.name for value in piece.taken] == ["x"]


@tried(40)
@given(networks())
def test_random_networks(network: Network) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "WHOLE_BYTES", 0)
        patch.setattr(pieces, "PIECE_BYTES", 0)
        same(network.model, {"x": network.x})


@pytest.mark.usefixtures("node_by_node")
def test_an_old_file_lists_its_weights_as_inputs() -> None:
    proto = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Mul", ["h", "v"], ["y"])],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in (("x", [2, 4]), ("w", [4, 3]), ("v", [3]))],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 3])],
        {"w": values(4, 3, seed=1), "v": values(3, seed=2)},
        opset=8,
        ir_version=3,
    )
    assert same(proto, {"x": values(2, 4, seed=3)}) == 2


@pytest.mark.usefixtures("node_by_node")
def test_outputs_that_no_node_computes() -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Constant", [], ["k"], value_floats=[1.0, 2.0])]
    outs = [helper.make_tensor_value_info(name, FLOAT, None) for name in ("y", "w", "k")]
    proto = model_of(nodes, [helper.make_tensor_value_info("x", FLOAT, ["N", 2])], outs, {"w": values(3)})
    same(proto, {"x": values(2, 2, seed=3)})


def test_pieces_are_as_large_as_they_may_be() -> None:
    graph = ir.from_proto(small()).graph
    assert [len(cut(graph, size)) for size in (10**6, 2500, 0)] == [1, 4, 7]
    held = [value.const_value for value in graph.initializers.values() if value.const_value is not None]
    assert weight_bytes(ir.from_proto(small())) == sum(tensor.nbytes for tensor in held)


@pytest.mark.usefixtures("node_by_node")
def test_a_half_input_is_cast_and_a_missing_one_refused() -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["N", 2]) for name in "xy")
    proto = model_of([helper.make_node("Neg", ["x"], ["y"])], [x], [y])
    session = open_graph(ir.from_proto(proto), threads=1)
    assert session.input_shapes == {"x": ("N", 2)}
    assert session.run({"x": np.ones((1, 2), np.float32)})["y"].dtype == np.float16
    assert not session.whole
    with pytest.raises(ModelError, match="inputs x are not fed"):
        session.run({})


def test_each_piece_can_be_changed() -> None:
    """`change` sees one piece at a time in a large model, the whole of a small one; what it gives back is run."""
    proto, x = small(), values(3, 3, 8, 8, seed=9)
    plain = open_graph(ir.from_proto(proto), threads=1).run({"x": x})["y"]

    def doubled(part: ir.Model) -> ir.Model:
        seen.append([node.op_type for node in part.graph])
        for node in part.graph:
            if node.op_type == "Gemm":
                node.attributes.add(ir.AttrFloat32("alpha", 2.0))
                node.attributes.add(ir.AttrFloat32("beta", 2.0))
        return part

    for large in (False, True):
        seen: list[list[str]] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sessions, "WHOLE_BYTES", 0 if large else 10**9)
            patch.setattr(pieces, "PIECE_BYTES", 0)
            found = open_graph(ir.from_proto(proto), threads=1, change=doubled).run({"x": x})["y"]
        np.testing.assert_allclose(found, 2 * plain, rtol=1e-4, atol=1e-5)
        assert len(seen) == (7 if large else 1)


def test_external_weights_are_read_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy of the data file is made, whether in pieces or whole."""
    proto, x = small(), values(3, 3, 8, 8, seed=9)
    whole = open_session(proto.SerializeToString(), threads=1).run({"x": x})["y"]
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    monkeypatch.setattr(ir, "save", None)
    for large in (False, True):
        monkeypatch.setattr(sessions, "WHOLE_BYTES", 0 if large else 10**9)
        found = open_graph(load_model(path), threads=1).run({"x": x})["y"]
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5)
