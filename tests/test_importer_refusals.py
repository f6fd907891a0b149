"""What cannot be imported: all of it named at once, each with the reason and the way out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.defs
import pytest
from onnx import helper

from batude_onnx.errors import UnsupportedError
from batude_onnx.importer import registry
from tests.importer_graphs import Array, floats, imported, model_of, whole

X = floats(2, 4, 6, 6)
SCHEMAS = {
    name: [schema for schema in onnx.defs.get_all_schemas_with_history() if (schema.domain, schema.name) == ("", name)]
    for name in registry.supported()
}


def refusal(*nodes: Any, weights: dict[str, Array] | None = None, opset: int = 17, outputs: tuple[str, ...] = ("y",)) -> str:
    with pytest.raises(UnsupportedError) as caught:
        imported(model_of(nodes, {"x": X}, outputs, weights, opset))
    return str(caught.value)


def test_all_nodes_are_named_at_once() -> None:
    message = refusal(
        helper.make_node("Relu", ["x"], ["a"], name="fine"),
        helper.make_node("Bernoulli", ["a"], ["d"], name="odd"),
        helper.make_node("MaxPool", ["a"], ["p", "indices"], name="pool", kernel_shape=[1, 1, 1, 1]),
        helper.make_node("FusedThing", ["p"], ["f"], name="fused", domain="com.example"),
        helper.make_node("Resize", ["f", "roi", "scales"], ["y"], coordinate_transformation_mode="centred"),
        weights={"roi": floats(8), "scales": np.ones(4, np.float32)},
        outputs=("y", "d", "indices"),
    )
    first, *others = message.splitlines()
    assert first == "4 of 5 nodes cannot be imported: Bernoulli (1), FusedThing (1), MaxPool (1), Resize (1)"
    assert len(others) == 4
    for name, op, why, advice in (
        ("odd", "Bernoulli", "not implemented by the importer: it draws random numbers", "export the network without it"),
        ("pool", "MaxPool", "kernel_shape = [1, 1, 1, 1]", "give 1 to 3 sizes"),
        ("fused", "com.example.FusedThing", "domain 'com.example'", "standard ONNX ops"),
        ("y", "Resize", "coordinate_transformation_mode = 'centred'", "use one of half_pixel"),
    ):
        (line,) = [line for line in others if f"node '{name}' ({op}, opset" in line]
        assert why in line
        assert advice in line


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "words"),
    [
        ("Gelu", ["x"], {"approximate": "sigmoid"}, "approximate = 'sigmoid' is not supported; use none or tanh"),
        ("Conv", ["x", "w"], {"auto_pad": "SAME"}, "auto_pad = 'SAME' is not supported"),
        ("Conv", ["x", "w"], {"strides": [1]}, "strides = (1,) is not supported; give 2 values"),
        ("Pad", ["x", "pads"], {"mode": "mirror"}, "mode = 'mirror'"),
        ("Cast", ["x"], {"to": 8}, "to = 'STRING' is not supported; use a float"),
        ("Resize", ["x", "", "scales"], {"mode": "area"}, "mode = 'area'"),
        ("Resize", ["x"], {}, "neither scales nor sizes"),
        ("MaxPool", ["x"], {"kernel_shape": [1, 1, 1, 1]}, "kernel_shape"),
        ("DepthToSpace", ["x"], {"blocksize": 2, "mode": "ABC"}, "mode = 'ABC'"),
        ("Transpose", ["x"], {"perm": 3}, "perm"),
        ("Concat", ["x", "x"], {}, "attribute axis is missing"),
        ("LeakyRelu", ["x"], {"alpha": "steep"}, "attribute alpha = 'steep' is not a number"),
        ("Add", ["x", "text"], {}, "element type STRING"),
    ],
)
def test_reasons(op: str, inputs: list[str], attributes: dict[str, Any], words: str) -> None:
    weights: dict[str, Array] = {
        "w": floats(4, 4, 3, 3),
        "pads": whole(0, 0, 1, 1, 0, 0, 1, 1),
        "scales": np.ones(4, np.float32),
        "text": np.array(["a"], object),
    }
    used = {name: weights[name] for name in inputs if name in weights}
    assert words in refusal(helper.make_node(op, inputs, ["y"], **attributes), weights=used, opset=20)


def test_training_exports_are_refused() -> None:
    names = ["x", "s", "b", "m", "v"]
    weights: dict[str, Array] = {name: np.ones(4, np.float32) for name in names[1:]}
    node = helper.make_node("BatchNormalization", names, ["y", "m2", "v2"], training_mode=1)
    assert "evaluation mode" in refusal(node, weights=weights)
    node = helper.make_node("Dropout", ["x", "", "yes"], ["y"])
    assert "training_mode = True" in refusal(node, weights={"yes": np.array(True)})


def test_versions() -> None:
    add = helper.make_node("Add", ["x", "x"], ["y"])
    message = refusal(add, opset=6)
    assert "its version 6 is not implemented" in message
    assert "opset that has version 7 or 13 or 14" in message
    assert "does not exist at opset 9" in refusal(helper.make_node("HardSwish", ["x"], ["y"]), opset=9)


def test_dead_nodes_do_not_count() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Bernoulli", ["x"], ["unused"])]
    assert imported(model_of(nodes, {"x": X}, ["y"])).output_names == ("y",)


def test_a_second_registration_is_an_error() -> None:
    with pytest.raises(ValueError, match="Conv, since-version 11, is registered twice"):
        registry.op("Conv", 11)(lambda node: lambda x: x)


def test_the_list_of_supported_ops() -> None:
    names = registry.supported()
    assert names == tuple(sorted(names))
    assert {"Conv", "Gemm", "Resize", "BatchNormalization"} <= set(names)
    assert "Scan" not in names


def test_an_absent_op_has_no_converter() -> None:
    with pytest.raises(ValueError, match="Conv has a converter"):
        registry.absent("it is not wanted", "Conv")


@pytest.mark.parametrize("opset", range(7, 27))
def test_every_version_of_an_op_has_a_converter(opset: int) -> None:
    """Of those that are supported at all; what the op set does not have, or has given up, does not count."""
    for name in registry.supported():
        if not onnx.defs.has(name) or min(found.since_version for found in SCHEMAS[name]) > opset:
            continue
        if not onnx.defs.get_schema(name, opset).deprecated:
            registry.find("", name, opset)
