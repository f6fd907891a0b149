"""Models and data that are out of the ordinary, and are compressed all the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from batude_onnx.errors import BudgetError, DataError
from batude_onnx.loading import load_model
from batude_onnx.pipeline import compress, validate
from batude_onnx.validation import draws, open_graph, open_session
from tests.layer_models import values
from tests.loading_models import model_of
from tests.pipelines import Listener, check, saved, settings_for, stored

FLOAT = TensorProto.FLOAT
WEIGHTS = {"w": values(24, 8, 3, 3), "b": values(24, seed=1), "v": values(24, 24, 3, 3, seed=2)}
NODES = (
    helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4),
    helper.make_node("Relu", ["c"], ["r"]),
    helper.make_node("Conv", ["r", "v"], ["y"], pads=[1] * 4),
)


def followed_by(
    *nodes: onnx.NodeProto,
    before: Sequence[onnx.NodeProto] = (),
    x: onnx.ValueInfoProto | None = None,
    out: str = "y",
    shape: tuple[int | str, ...] = ("N", 24, 6, 6),
    **held: np.ndarray[Any, Any],
) -> onnx.ModelProto:
    """Two convolutions, what comes `before` them and what behind; `out` is the only output."""
    given = x or helper.make_tensor_value_info("x", FLOAT, ["N", 8, 6, 6])
    outputs = [helper.make_tensor_value_info(out, FLOAT, shape)]
    return model_of([*before, *NODES, *nodes], [given], outputs, {**WEIGHTS, **held}, opset=18, ir_version=10)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "x.npz"
    np.savez(path, x_train=values(64, 8, 6, 6, seed=5))
    return path


def dead() -> onnx.ModelProto:
    """A layer behind a ReLU that lets nothing through sees zeros only."""
    nodes = [
        helper.make_node("Conv", ["r", "v", "low"], ["d"], pads=[1] * 4, name="before"),
        helper.make_node("Relu", ["d"], ["dr"]),
        helper.make_node("Conv", ["dr", "u"], ["e"], pads=[1] * 4),
        helper.make_node("Add", ["y", "e"], ["sum"]),
    ]
    return followed_by(*nodes, out="sum", low=np.full(24, -1e3, np.float32), u=values(24, 24, 3, 3, seed=3))


def weight_given_out() -> onnx.ModelProto:
    proto = followed_by()
    proto.graph.output.append(helper.make_tensor_value_info("b", FLOAT, [24]))
    return proto


def text_given_out() -> onnx.ModelProto:
    proto = followed_by(
        helper.make_node("Constant", [], ["text"], value_strings=["a", "b"]), helper.make_node("Identity", ["text"], ["t"])
    )
    proto.graph.output.append(helper.make_tensor_value_info("t", TensorProto.STRING, [2]))
    return proto


def not_all_numbers() -> onnx.ModelProto:
    """Of what is below zero there is no root."""
    proto = followed_by(helper.make_node("Sqrt", ["y"], ["root"]))
    proto.graph.output.append(helper.make_tensor_value_info("root", FLOAT, ["N", 24, 6, 6]))
    return proto


ODD = {
    "a layer that sees zeros": dead(),
    "a bias is an output": weight_given_out(),
    "one number": followed_by(helper.make_node("ReduceMean", ["y"], ["m"], keepdims=0), out="m", shape=()),
    "minus infinity": followed_by(helper.make_node("Relu", ["y"], ["z"]), helper.make_node("Log", ["z"], ["l"]), out="l"),
    "text": text_given_out(),
    "roots": not_all_numbers(),
}


@pytest.mark.parametrize("proto", ODD.values(), ids=ODD.keys())
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_with_samples(proto: onnx.ModelProto, tmp_path: Path, samples: Path) -> None:
    settings = settings_for(saved(proto, tmp_path), tmp_path, "1.3x", samples, epochs=0.0)
    verdict = compress(settings)
    assert verdict.ranks
    assert all(difference.within for difference in (*verdict.surgery, *verdict.parity))
    assert stored(settings.output) == verdict.comparison.cost_other.params <= verdict.budget.limits[0].limit


def test_a_budget_that_layers_left_alone_forbid_names_them(tmp_path: Path) -> None:
    """Two layers that are not alike share a weight."""
    more = (
        helper.make_node("Conv", ["r", "v"], ["z"], pads=[2] * 4, dilations=[2, 2]),
        helper.make_node("Add", ["y", "z"], ["sum"]),
    )
    settings = settings_for(saved(followed_by(*more, out="sum"), tmp_path), tmp_path, "3x")
    with pytest.raises(
        BudgetError, match=r"; 2 of 3 layers cannot be made smaller \(the largest, y: its weight v is shared by 2"
    ):
        compress(settings)


def _no_shape(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.ClearField("shape")


def _no_type(model: onnx.ModelProto) -> None:
    model.graph.output[0].ClearField("type")


def _no_name(model: onnx.ModelProto) -> None:
    model.graph.name = ""


def _key_twice(model: onnx.ModelProto) -> None:
    model.metadata_props.extend(onnx.StringStringEntryProto(key="author", value=value) for value in "ab")


def _full_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "ai.onnx"


def _old(model: onnx.ModelProto) -> None:
    model.ir_version = 3
    model.opset_import[0].version = 8


@pytest.mark.parametrize("harm", [_no_shape, _no_type, _no_name, _key_twice, _full_domain, _old])
@pytest.mark.parametrize("simplify", [True, False])
def test_what_the_checker_minds_and_the_runtime_does_not(
    harm: Callable[[onnx.ModelProto], None], simplify: bool, tmp_path: Path
) -> None:
    model = followed_by()
    harm(model)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert open_session(path, threads=1).run({"x": values(1, 8, 6, 6)})
    settings = settings_for(path, tmp_path, "1.3x,macs=1.2x", simplify=simplify)
    verdict = compress(settings)
    assert verdict.ranks
    made = onnx.load(settings.output)
    assert (made.graph.name, made.ir_version, list(made.graph.output)) == (
        model.graph.name,
        model.ir_version,
        list(model.graph.output),
    )
    assert all(difference.within for difference in validate(settings.output, settings.output, threads=1).differences)


def test_a_weight_behind_a_long_way(tmp_path: Path) -> None:
    names = ["v", *(f"v{number}" for number in range(1200))]
    way = [helper.make_node("Identity", [a], [b]) for a, b in pairwise(names)]
    layer = helper.make_node("Conv", ["y", names[-1]], ["z"], pads=[1] * 4)
    settings = settings_for(saved(followed_by(*way, layer, out="z"), tmp_path), tmp_path, "1.3x", simplify=False)
    assert compress(settings).ranks


def test_numbers_too_large_to_be_squared_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=values(16, 8, 6, 6) * np.float32(1e30))
    settings = settings_for(saved(followed_by(), tmp_path), tmp_path, "1.3x", tmp_path / "x.npz", epochs=0.0)
    with pytest.raises(DataError, match=r"layer c meets NaN, infinities or numbers too large to be squared: .*--exclude c"):
        compress(settings)
    assert not settings.output.exists()


def test_samples_that_are_no_floats_are_run_one_by_one(tmp_path: Path) -> None:
    given = helper.make_tensor_value_info("bytes", TensorProto.UINT8, ["N", 8, 6, 6])
    proto = followed_by(before=[helper.make_node("Cast", ["bytes"], ["x"], to=FLOAT)], x=given)
    np.savez(tmp_path / "x.npz", x_train=np.random.default_rng(0).integers(0, 256, (32, 8, 6, 6), dtype=np.uint8))
    settings, told = settings_for(saved(proto, tmp_path), tmp_path, "1.3x", tmp_path / "x.npz", epochs=0.0), Listener()
    check(compress(settings, told), settings)
    assert "32 runs" in told.said


def drawn(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    return followed_by(*nodes, helper.make_node("Mul", ["y", "noise"], ["out"]), out="out")


NOISE = {
    "normal": helper.make_node("RandomNormalLike", ["y"], ["noise"], mean=0.5, scale=2.0),
    "with a seed": helper.make_node("RandomNormalLike", ["y"], ["noise"], seed=3.0),
    "uniform": helper.make_node("RandomUniformLike", ["y"], ["noise"], low=-1.0, high=3.0, dtype=FLOAT),
    "of fixed shape": helper.make_node("RandomNormal", [], ["noise"], shape=[1, 24, 6, 6]),
}


@pytest.mark.parametrize("node", NOISE.values(), ids=NOISE.keys())
def test_a_model_that_draws_numbers_is_proved(node: onnx.NodeProto, tmp_path: Path) -> None:
    path = saved(drawn(node), tmp_path)
    settings = settings_for(path, tmp_path, "1.3x")
    check(compress(settings), settings)
    # It draws them still.
    assert node.op_type in [found.op_type for found in onnx.load(settings.output).graph.node]
    assert all(difference.within for difference in validate(path, path, threads=1).differences)


def test_what_is_drawn_is_something_to_work_on(tmp_path: Path) -> None:
    """A noise of zeros would hide all that it is multiplied with."""
    x = values(2, 8, 6, 6)
    for node, number in zip(NOISE.values(), (2.5, 1.0, 2.0, 1.0), strict=True):
        outputs = open_graph(load_model(saved(drawn(node), tmp_path)), threads=1).run({"x": x})
        plain = open_graph(load_model(saved(followed_by(), tmp_path)), threads=1).run({"x": x})
        np.testing.assert_allclose(outputs["out"], number * plain["y"], rtol=1e-5)


@pytest.mark.parametrize("dtype", [None, TensorProto.INT64])
def test_a_coin_falls_on_its_likelier_side(dtype: int | None, tmp_path: Path) -> None:
    more: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    inputs, outputs = (helper.make_tensor_value_info(name, kind, ["N"]) for name, kind in (("x", FLOAT), ("y", dtype or FLOAT)))
    proto = model_of([helper.make_node("Bernoulli", ["x"], ["y"], **more)], [inputs], [outputs], {}, opset=18, ir_version=10)
    x = np.array([0.1, 0.4, 0.6, 0.9], np.float32)
    (y,) = open_graph(load_model(saved(proto, tmp_path)), threads=1).run({"x": x}).values()
    assert y.tolist() == [0, 0, 1, 1]


def test_what_is_drawn_in_a_branch(tmp_path: Path) -> None:
    """A name that a pass would take stands outside of it."""
    branch = helper.make_graph(
        [helper.make_node("RandomNormalLike", ["val_0"], ["n"]), helper.make_node("Add", ["val_0", "n"], ["then"])],
        "branch", [], [helper.make_tensor_value_info("then", FLOAT, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Identity", ["val_0"], ["else"])], "other", [], [helper.make_tensor_value_info("else", FLOAT, None)]
    )
    choice = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=other)
    x, y = (helper.make_tensor_value_info(name, FLOAT, ["N"]) for name in "xy")
    nodes, held = [helper.make_node("Relu", ["x"], ["val_0"]), choice], {"yes": np.array(True)}
    path = saved(model_of(nodes, [x], [y], held, opset=18, ir_version=10), tmp_path)
    (given,) = open_graph(load_model(path), threads=1).run({"x": np.ones(3, np.float32)}).values()
    np.testing.assert_allclose(given, 2.0)


def test_what_each_call_of_a_function_chooses_is_left_to_it(tmp_path: Path) -> None:
    node = helper.make_node("RandomNormalLike", ["a"], ["b"], dtype=FLOAT)
    scale = node.attribute.add()
    scale.name, scale.ref_attr_name, scale.type = "scale", "sc", onnx.AttributeProto.FLOAT
    proto = followed_by(helper.make_node("Noisy", ["y"], ["z"], domain="own", sc=0.0), out="z")
    versions = [helper.make_opsetid("", 18)]
    proto.functions.append(helper.make_function("own", "Noisy", ["a"], ["b"], [node], versions, ["sc"]))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    assert not list(draws(load_model(saved(proto, tmp_path))))


def test_the_time_of_a_model_that_draws_numbers(tmp_path: Path) -> None:
    """Without them much of it could be computed beforehand."""
    path = saved(drawn(NOISE["normal"]), tmp_path)
    with pytest.raises(BudgetError, match="a model that draws numbers is run without them, so its time cannot be limited"):
        compress(settings_for(path, tmp_path, "latency=1.1x"))
    assert float(validate(path, path, threads=1).latency["ratio"]) > 0
