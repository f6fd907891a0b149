"""What a message must hold to be a model that can be read at all, said before other libraries stumble over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from itertools import chain
from pathlib import Path

import onnx
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]  # protobuf ships no stubs
from google.protobuf.message import Message  # type: ignore[import-untyped]

from batude_onnx.errors import ModelError


def require_complete(proto: onnx.ModelProto, path: Path) -> None:
    """A message that parsed may still be no model: refuse what is missing an essential part."""
    parts = {
        "IR version": proto.ir_version > 0,
        "opset": len(proto.opset_import) > 0,
        "graph": proto.HasField("graph"),
        "nodes": len(proto.graph.node) > 0,
        "outputs": len(proto.graph.output) > 0,
    }
    missing = [name for name, present in parts.items() if not present]
    if missing:
        lacks = ", no ".join(missing)
        raise ModelError(f"{path}: not an ONNX model, or cut short: it has no {lacks}; export or download it again")


def require_text(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse text that is not UTF-8, which the parser lets pass and no writer takes; of attributes, those of ONNX's own ops."""
    for field, text in _texts(proto):
        if isinstance(text, bytes):
            raise ModelError(f"{path}: damaged: {field} {text[:40]!r} is not UTF-8; export or download it again")


def require_types(tensors: Iterable[onnx.TensorProto], path: Path) -> None:
    """Refuse tensors of types that ONNX does not have."""
    for tensor in tensors:
        if tensor.data_type not in onnx.TensorProto.DataType.values():
            kind = f"weight {tensor.name!r} is of the unknown type {tensor.data_type}"
            raise ModelError(f"{path}: damaged: {kind}; export or download it again")


def _texts(message: Message) -> Iterator[tuple[str, str | bytes]]:
    """Every string of a message, with the name of its field."""
    if isinstance(message, onnx.NodeProto) and message.domain in ("", "ai.onnx"):
        for attribute in message.attribute:
            yield from ((f"attribute {attribute.name}", _decoded(text)) for text in (attribute.s, *attribute.strings))
    for field, value in message.ListFields():
        many = value if field.is_repeated else (value,)
        if field.type == FieldDescriptor.TYPE_STRING:
            yield from ((field.full_name.removeprefix("onnx."), text) for text in many)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in many:
                yield from _texts(inner)


def _decoded(text: bytes) -> str | bytes:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text


def require_sources(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse a graph in which something is read that nothing gives."""
    _require_sources(proto.graph, frozenset(), path)
    for function in proto.functions:
        given = {*function.input, *chain.from_iterable(node.output for node in function.node)}
        _require_given(function.node, function.output, given, path)


def _require_sources(graph: onnx.GraphProto, outer: Set[str], path: Path) -> None:
    given = {*outer, *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    given |= {sparse.values.name for sparse in graph.sparse_initializer}
    given |= {name for node in graph.node for name in node.output}
    _require_given(graph.node, [value.name for value in graph.output], given, path)


def _require_given(nodes: Iterable[onnx.NodeProto], outputs: Iterable[str], given: Set[str], path: Path) -> None:
    """That all that `nodes` and the graphs inside of them read is among `given`."""
    for node in nodes:
        for name in node.input:
            if name and name not in given:
                reader = node.name or ", ".join(node.output)
                raise ModelError(f"{path}: node {reader!r} ({node.op_type}) reads {name!r}, which nothing gives; export it again")
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _require_sources(inner, given, path)
    for name in outputs:
        if name not in given:
            raise ModelError(f"{path}: output {name!r} is what nothing gives; export it again")
