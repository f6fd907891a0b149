"""What is not replaced stays as it was, byte for byte: the file that was read against the file that is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from batude_onnx.loading import load_model, save_model
from batude_onnx.pipeline import compress
from batude_onnx.rewriting import rewrite
from tests.layer_models import LAYERS, values
from tests.loading_models import model_of
from tests.pipelines import saved, settings_for
from tests.rewritings import ATOL, RTOL, by_name, chains_of, checked, outputs
from tests.rich_models import rich

REPOSITORY = Path(__file__).parents[1]
OURS = REPOSITORY / "models" / "resnet20-cifar10.onnx"
SHARED = REPOSITORY.parent / "shared" / "models"
REAL = sorted(SHARED.glob("*.onnx"))

Chosen = Sequence[str]


def written(path: Path, folder: Path, chosen: Chosen | None, **changed: Any) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A file and what a rewrite of some of its layers (None: of all that can be) makes of it, both as they lie on the disk."""
    model = load_model(path)
    chains = chains_of(model)
    replaced = chains if chosen is None else {key: chains[key] for key in chosen}
    target = folder / "written.onnx"
    save_model(rewrite(model, replaced, **changed), target)
    return onnx.load(path), onnx.load(target)


def same(before: Any, after: Any, field: str) -> None:
    assert getattr(after, field) == getattr(before, field), field
    descriptor = before.DESCRIPTOR.fields_by_name[field]
    if descriptor.has_presence:
        assert after.HasField(field) == before.HasField(field), field


def expect_the_rest(before: onnx.ModelProto, after: onnx.ModelProto, chosen: Chosen) -> None:
    """Every field of the model but the nodes whose outputs are `chosen`, and the weights that only they read."""
    for field in before.DESCRIPTOR.fields_by_name:
        if field != "graph":
            same(before, after, field)
    for field in {*before.graph.DESCRIPTOR.fields_by_name} - {"node", "initializer", "value_info", "input"}:
        same(before.graph, after.graph, field)

    gone = [node for node in before.graph.node if node.output[0] in chosen]
    assert len(gone) == len(chosen)
    kept = [node for node in before.graph.node if node.output[0] not in chosen]
    added = {node.output[0] for node in after.graph.node if "_factor" in node.name}
    assert [node for node in after.graph.node if node.output[0] not in added | set(chosen)] == kept
    # In the place of each chosen node stands its chain, which ends in its output.
    ends = [node.output[0] for node in after.graph.node if node.output[0] not in added - set(chosen)]
    assert ends == [node.output[0] for node in before.graph.node]

    read = {name for node in kept for name in node.input}
    lost = {name for node in gone for name in node.input[1:]} - read - {value.name for value in before.graph.output}
    expected = [tensor for tensor in before.graph.initializer if tensor.name not in lost]
    assert list(after.graph.initializer[: len(expected)]) == expected
    assert all("_factor" in tensor.name for tensor in after.graph.initializer[len(expected) :])
    assert list(after.graph.input) == [value for value in before.graph.input if value.name not in lost]
    infos = [value for value in before.graph.value_info if value.name not in lost]
    assert list(after.graph.value_info[: len(infos)]) == infos
    assert {value.name for value in after.graph.value_info[len(infos) :]} <= added


CHOICES: list[list[str]] = [["a"], ["c"], ["a", "c"]]


@pytest.mark.parametrize("chosen", CHOICES, ids="-".join)
def test_all_that_was_not_chosen_stays_byte_for_byte(tmp_path: Path, chosen: list[str]) -> None:
    before, after = written(saved(rich(), tmp_path), tmp_path, chosen)
    onnx.checker.check_model(after, full_check=True)
    expect_the_rest(before, after, chosen)
    feeds = {"x": values(3, 4, 7, 6), "flag": np.array(False)}
    wanted, found = outputs(before, **feeds), outputs(after, **feeds)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=RTOL, atol=ATOL)


def test_onnx_ir_alone_does_change_it(tmp_path: Path) -> None:
    """The twin: without what puts it back the same comparison fails, in more than one place."""
    before = rich()
    after = ir.to_proto(ir.from_proto(before))
    assert list(after.metadata_props) != list(before.metadata_props)
    assert list(after.graph.value_info) != list(before.graph.value_info)
    assert list(after.graph.node) != list(before.graph.node)
    with pytest.raises(AssertionError):
        expect_the_rest(before, after, [])


@pytest.mark.parametrize("path", [OURS, *REAL], ids=lambda path: path.name)
def test_real_models(tmp_path: Path, path: Path) -> None:
    if not path.exists():
        pytest.skip(f"{path.name} is not in this checkout")
    chosen = list(chains_of(load_model(path)))
    assert chosen
    for some in (chosen, chosen[:1], chosen[::3]):
        expect_the_rest(*written(path, tmp_path, some), some)


def test_shared_models_are_looked_at_where_there_are_any() -> None:
    if not REAL:
        pytest.skip(f"there are no models in {SHARED}")
    assert len(REAL) > 3


@pytest.mark.parametrize("path", [None, OURS, *REAL[:1]], ids=lambda path: path.name if path else "rich")
def test_nothing_chosen_gives_the_same_file(tmp_path: Path, path: Path | None) -> None:
    given = saved(rich(), tmp_path) if path is None else path
    written(given, tmp_path, [])
    assert (tmp_path / "written.onnx").read_bytes() == given.read_bytes()


def test_a_run_changes_only_what_its_report_names(tmp_path: Path) -> None:
    """The whole pipeline without onnxsim: its notes come behind the metadata that was there."""
    settings = settings_for(saved(rich(), tmp_path), tmp_path, "1.3x", simplify=False)
    verdict = compress(settings)
    before, after = onnx.load(settings.model), onnx.load(settings.output)
    notes = list(after.metadata_props)[len(before.metadata_props) :]
    assert [note.key.partition(".")[0] for note in notes] == ["batude_onnx"] * 4
    del after.metadata_props[len(before.metadata_props) :]
    assert verdict.ranks
    expect_the_rest(before, after, list(verdict.ranks))


def test_new_weights_and_metadata_are_the_only_other_differences(tmp_path: Path) -> None:
    new = {"w2": values(6, 8, 3, 3, seed=9), "half": np.array([0.25], np.float32)}
    path = saved(rich(), tmp_path)
    before, after = written(path, tmp_path, [], weights=new, metadata={"batude_onnx.budget": "2x", "classes": "5"})
    props = [(prop.key, prop.value) for prop in after.metadata_props]
    assert props == [("licence", "none"), ("classes", "5"), ("author", ""), ("batude_onnx.budget", "2x")]
    changed = {tensor.name for tensor in after.graph.initializer if tensor != by_name(before.graph.initializer)[tensor.name]}
    assert changed == {"w2"}
    differing = [node.output[0] for node, old in zip(after.graph.node, before.graph.node, strict=True) if node != old]
    assert differing == ["half"]
    # What is said of a weight stays with it.
    _, again = written(path, tmp_path, [], weights={"w1": values(8, 4, 3, 3, seed=9)})
    old, tensor = before.graph.initializer[0], again.graph.initializer[0]
    assert (tensor.doc_string, list(tensor.metadata_props)) == ("a weight", list(old.metadata_props))


def test_weights_in_another_file_stay_there(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(rich(), path, save_as_external_data=True, location="weights", size_threshold=0)
    before, after = written(path, tmp_path, ["a"])
    assert (tmp_path / "written.onnx.data").exists()
    del before.graph.initializer[:], after.graph.initializer[:]  # as onnx reads them they are no longer external
    for field in ("metadata_props", "functions", "opset_import"):
        same(before, after, field)
    assert [node for node in after.graph.node if "_factor" not in node.name] == list(before.graph.node)[1:]
    assert list(after.graph.value_info[:4]) == list(before.graph.value_info)


def test_what_is_said_of_a_layer_goes_to_the_node_that_gives_its_output() -> None:
    model = ir.from_proto(rich())
    after = by_name(checked(rewrite(model, chains_of(model, {"a": (3, 3)}))).graph.node)
    assert after["a_factor3_node"].doc_string == "the first layer"
    assert [(prop.key, prop.value) for prop in after["a_factor3_node"].metadata_props] == [("from", "module.first")]


def test_the_input_model_is_not_changed() -> None:
    model = ir.from_proto(rich())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    new = {"w2": values(6, 8, 3, 3, seed=9), "half": np.array([0.25], np.float32)}
    rewrite(model, chains_of(model, {"a": (3, 3)}), weights=new, biases={"c": values(6)}, metadata={"a": "b"})
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_equal_values_leave_the_stored_tensor_alone(tmp_path: Path) -> None:
    path = saved(rich(), tmp_path)
    written(path, tmp_path, [], weights={"w1": values(8, 4, 3, 3, seed=1)})
    assert (tmp_path / "written.onnx").read_bytes() == path.read_bytes()


def test_a_model_that_was_never_a_file_is_written_as_onnx_ir_does(tmp_path: Path) -> None:
    model = ir.from_proto(LAYERS["conv2d"].model())
    save_model(model, tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx") == ir.to_proto(model)


def test_old_models_list_their_new_weights_as_inputs(tmp_path: Path) -> None:
    proto = LAYERS["conv2d"].model(opset=8, ir_version=3)
    helper.set_model_props(proto, {"b": "1", "a": "2"})
    _, after = written(saved(proto, tmp_path), tmp_path, None)
    assert [value.name for value in after.graph.input] == ["x", *(tensor.name for tensor in after.graph.initializer)]
    assert [prop.key for prop in after.metadata_props] == ["b", "a"]


def test_a_node_with_a_body_that_reads_another_value_now_reads_it_in_the_file(tmp_path: Path) -> None:
    """As where a pass has found two constants to be equal."""
    kinds = {"step": TensorProto.INT64, "go": TensorProto.BOOL, "v": TensorProto.FLOAT}
    kinds |= {"goes": TensorProto.BOOL, "next": TensorProto.FLOAT}
    told = {
        name: helper.make_tensor_value_info(name, kind, None if kind == TensorProto.FLOAT else []) for name, kind in kinds.items()
    }
    body = helper.make_graph(
        [helper.make_node("Mul", ["v", "v"], ["next"], doc_string="squared"), helper.make_node("Identity", ["go"], ["goes"])],
        "body", [told["step"], told["go"], told["v"]], [told["goes"], told["next"]],
    )  # fmt: skip
    nodes = [helper.make_node("Loop", ["two", "", "x"], ["y"], body=body, doc_string="twice")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in "xy")
    held = {"two": np.array(2), "same": np.array(2)}
    path = tmp_path / "model.onnx"
    onnx.save(model_of(nodes, [x], [y], held), path)
    model = load_model(path)
    (loop,) = model.graph
    loop.replace_input_with(0, model.graph.initializers["same"])
    save_model(model, tmp_path / "out.onnx")
    (written,) = onnx.load(tmp_path / "out.onnx").graph.node
    assert (list(written.input), written.doc_string) == (["same", "", "x"], "twice")
    assert written.attribute[0].g.node[0].doc_string == "squared"
