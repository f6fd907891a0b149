"""A model that holds something in every field that ONNX knows and onnxruntime takes, to see what a rewrite leaves as it was."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.layer_models import values
from tests.loading_models import FLOAT, model_of


def sparse() -> onnx.SparseTensorProto:
    """Of 6 values, the 1st and the 4th."""
    held = numpy_helper.from_array(np.array([0.5, -0.25], dtype=np.float32), "thin")
    return helper.make_sparse_tensor(held, numpy_helper.from_array(np.array([0, 3], dtype=np.int64), ""), [6])


def annotation(tensor: str) -> onnx.TensorAnnotation:
    """Says that `tensor` is quantized by the initializer 'scale'."""
    note = onnx.TensorAnnotation(tensor_name=tensor)
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    return note


def _branches() -> dict[str, onnx.GraphProto]:
    """With a weight, a value_info and texts inside."""
    made = {}
    for name, op in (("then", "Sigmoid"), ("else", "Tanh")):
        nodes = [
            helper.make_node("Mul", ["r", f"{name}_factor"], [f"{name}_scaled"], name=f"{name}_mul"),
            helper.make_node(op, [f"{name}_scaled"], [f"{name}_out"], name=f"{name}_node", doc_string="inner"),
        ]
        inner = helper.make_tensor_value_info(f"{name}_scaled", FLOAT, ["N", 6, 5, 4], doc_string="inner value")
        out = helper.make_tensor_value_info(f"{name}_out", FLOAT, ["N", 6, 5, 4], doc_string="inner output")
        factor = helper.make_tensor(f"{name}_factor", FLOAT, [1], [0.75])  # as float_data, not as raw bytes
        graph = helper.make_graph(nodes, f"{name}_graph", [], [out], [factor], doc_string="a branch", value_info=[inner])
        graph.metadata_props.add(key="branch", value=name)
        made[f"{name}_branch"] = graph
    return made


def _function() -> onnx.FunctionProto:
    """y = x + alpha * x, with alpha an attribute of the call and texts of its own."""
    constant = helper.make_node("Constant", [], ["a"], name="alpha")
    reference = constant.attribute.add(name="value_float", type=onnx.AttributeProto.FLOAT)
    reference.ref_attr_name = "alpha"
    nodes = [
        constant,
        helper.make_node("Mul", ["x", "a"], ["part"], name="times", doc_string="in the function"),
        helper.make_node("Add", ["x", "part"], ["y"], name="plus"),
    ]
    made = helper.make_function(
        "local", "Grow", ["x"], ["y"], nodes, [helper.make_opsetid("", 17)], ["alpha"], doc_string="grows"
    )
    made.value_info.append(helper.make_tensor_value_info("part", FLOAT, None, doc_string="of the function"))
    made.metadata_props.add(key="made", value="by hand")
    return made


def _inputs() -> list[onnx.ValueInfoProto]:
    x = helper.make_tensor_value_info("x", FLOAT, ["N", 4, 7, 6], doc_string="the image", shape_denotation=["N", "C", "", ""])
    x.type.denotation = "IMAGE"
    x.metadata_props.add(key="range", value="0..1")
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [], doc_string="which")
    listed = helper.make_tensor_value_info("w2", FLOAT, [6, 8, 3, 3], doc_string="a weight that may be fed")
    return [x, flag, listed]


def _nodes() -> list[onnx.NodeProto]:
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="first", pads=[1, 1, 1, 1], doc_string="the first layer"),
        helper.make_node("Relu", ["a"], ["n"], name="act", doc_string="between"),
        helper.make_node("Conv", ["n", "w2"], ["c"], name="second", doc_string="the second layer"),
        helper.make_node(
            "Constant", [], ["half"], name="constant", value=numpy_helper.from_array(np.array([0.5], np.float32), "k")
        ),
        helper.make_node("Mul", ["c", "half"], ["r"], name="scale it"),
        helper.make_node("If", ["flag"], ["i"], name="branch", doc_string="either", **_branches()),
        helper.make_node("Grow", ["i"], ["g"], name="call", domain="local", alpha=0.5),
        helper.make_node("Resize", ["g", "", "sizes"], ["z"], name="larger", mode="nearest"),
        helper.make_node("Clip", ["z", "", "most"], ["clipped"]),
        helper.make_node("Split", ["clipped"], ["s1", "s2"], axis=1, name="halves"),
        helper.make_node("SequenceConstruct", ["s1", "s2"], ["list"], name="together"),
        helper.make_node("SequenceAt", ["list", "one"], ["last"], name="pick"),
        helper.make_node("Shape", ["last"], ["size"], name="shape", start=1),
        helper.make_node("MaxPool", ["last"], ["out", ""], name="pool", kernel_shape=[2, 2]),
    ]
    nodes[0].metadata_props.add(key="from", value="module.first")
    nodes[1].metadata_props.add(key="from", value="module.act")
    nodes[0].attribute[0].doc_string = "on all sides"
    nodes[7].attribute[0].doc_string = "no blending"
    return nodes


def rich() -> onnx.ModelProto:
    """x (N, 4, 7, 6) and flag -> two convolutions (outputs a and c), a branch, a function, a sequence."""
    outs = [
        helper.make_tensor_value_info("out", FLOAT, ["N", 3, 9, 7], doc_string="the features"),
        helper.make_tensor_value_info("size", TensorProto.INT64, [3]),
        helper.make_tensor_value_info("a", FLOAT, ["N", 8, 7, 6], doc_string="of the first layer"),
    ]
    held = {"w1": values(8, 4, 3, 3, seed=1), "b1": values(8, seed=2), "w2": values(6, 8, 3, 3, seed=3)}
    model = model_of(_nodes(), _inputs(), outs, held, opset=17, ir_version=10)
    graph = model.graph
    graph.initializer[0].doc_string = "a weight"
    graph.initializer[0].metadata_props.add(key="from", value="module.first.weight")
    graph.initializer.append(helper.make_tensor("sizes", FLOAT, [4], [1.0, 1.0, 2.0, 2.0]))
    graph.initializer.append(helper.make_tensor("most", FLOAT, [], [1.5]))
    graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, [], [1]))
    graph.initializer.append(helper.make_tensor("scale", FLOAT, [], [0.01]))
    graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], np.array([b"cat", b"dog"])))
    # Neither in the order of the nodes nor for all of them; one without a shape, one of a sequence.
    graph.value_info.append(helper.make_tensor_value_info("c", FLOAT, ["N", 6, 5, 4], doc_string="value c"))
    graph.value_info.append(helper.make_tensor_value_info("n", FLOAT, ["N", 8, 7, 6]))
    graph.value_info.append(helper.make_tensor_value_info("r", FLOAT, None))
    graph.value_info.append(helper.make_tensor_sequence_value_info("list", FLOAT, None))
    graph.value_info[1].metadata_props.add(key="kind", value="activation")
    graph.metadata_props.add(key="of", value="the graph")
    graph.doc_string = "a graph"
    model.functions.append(_function())
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.opset_import.append(helper.make_opsetid("com.example", 3))
    model.producer_name, model.producer_version, model.domain = "maker", "3.1", "org.example"
    model.model_version, model.doc_string = 7, "a model"
    helper.set_model_props(model, {"licence": "none", "classes": "6", "author": ""})
    onnx.checker.check_model(model, full_check=True)
    return model
