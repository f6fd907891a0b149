"""The ONNX checker asked, and what it minds although onnxruntime runs it let pass.

Harmless are an output without a type or a shape and an input without a shape, a graph without a name, two metadata entries
of one key, nodes of the domain `ai.onnx` by that name, and weights that a model of an old IR version does not list as inputs.
Such a model is checked once more with these mended in a copy; the model itself stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from batude_onnx.errors import ModelError

# What the checker raises; the last two of them for messages that it cannot take at all.
REJECTED = (onnx.checker.ValidationError, UnicodeDecodeError, RuntimeError, ValueError)
# Some exporters leave the nodes unsorted. onnxruntime runs them, so that alone is no reason to refuse.
UNSORTED = "topologically sorted"
# From this IR version on, initializers need not be graph inputs too.
INITIALIZERS_APART = 4


def check_with_onnx(proto: onnx.ModelProto, path: Path) -> bool:
    """Whether the nodes of `proto`, read from `path`, are in an order in which they can run.

    Raises ModelError for everything else that is wrong.
    """
    # By path, since the checker cannot take more than 2 GB as bytes and looks for external data beside the file.
    try:
        onnx.checker.check_model(path)
    except REJECTED as error:
        return UNSORTED not in str(error) and check_mended(proto, path)
    return True


def check_mended(proto: onnx.ModelProto, path: Path) -> bool:
    """The same for `proto` with what is harmless mended, its weights one by one and those in other files not at all."""
    try:
        onnx.checker.check_model(_mended(proto).SerializeToString())
        for tensor in proto.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                onnx.checker.check_tensor(tensor)
    except REJECTED as error:
        if UNSORTED in str(error):
            return False
        raise ModelError(f"{path}: the ONNX checker rejects it: {one_line(error)}; export it again") from error
    return True


def _mended(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without what is harmless, and with the weights of the main graph, which may be large, as inputs."""
    mended = onnx.ModelProto(ir_version=max(proto.ir_version, INITIALIZERS_APART), opset_import=proto.opset_import)
    mended.functions.extend(proto.functions)
    entries = {entry.key: entry for entry in proto.metadata_props}
    mended.metadata_props.extend(entries.values())
    graph, whole = mended.graph, proto.graph
    graph.name = whole.name
    for field in ("node", "input", "output", "value_info", "metadata_props"):
        getattr(graph, field).extend(getattr(whole, field))
    for value in graph.output:
        if value.type.WhichOneof("value") is None:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for value in (*graph.input, *graph.output):
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.shape.SetInParent()
    listed = {value.name for value in graph.input}
    for tensor in whole.initializer:
        if tensor.name in listed:
            listed.remove(tensor.name)  # so that a second one of this name is found
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for body in (graph, *inner_graphs(graph.node)):
        body.name = body.name or "graph"
        _name_domain(body.node)
    for function in mended.functions:
        _name_domain(function.node)
        for body in inner_graphs(function.node):
            body.name = body.name or "graph"
            _name_domain(body.node)
    return mended


def _name_domain(nodes: Iterable[onnx.NodeProto]) -> None:
    """ONNX's own ops under the name by which the checker knows their domain."""
    for node in nodes:
        if node.domain == "ai.onnx":
            node.domain = ""


def inner_graphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """Every graph in the attributes of nodes, at any depth."""
    for node in nodes:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield body
                yield from inner_graphs(body.node)


def one_line(error: BaseException) -> str:
    """What a library gave as the root of an error, on one line of at most 300 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300].rstrip(" .") or type(error).__name__
