"""What onnx-ir changes on the way through is put back: a written file differs from the one it came from only where it was edited.

    file O -> onnx-ir -> edits -> W        wherever W says what onnx-ir makes of O, it is given what O says

onnx-ir sorts metadata and writes that of weights twice, lists all weights in value_info, puts value_info into the order of the
nodes, and drops empty outputs at a node's end. The message that a model was read from goes with it, in its `meta`; its tensors
are those that the model holds, so this takes no memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx
import onnx_ir

SOURCE = "batude_onnx.source"
Body = onnx.GraphProto | onnx.FunctionProto
# Fields of a model that no edit changes.
FIXED = ("producer_name", "producer_version", "domain", "model_version", "doc_string")


def remember(model: onnx_ir.Model, source: onnx.ModelProto) -> None:
    """Keep what `model` was read from; clones of it keep it too."""
    model.meta[SOURCE] = source


def inherit(model: onnx_ir.Model, other: onnx_ir.Model) -> onnx_ir.Model:
    """`model`, made anew out of `other`: what that one was read from is what it was read from, too."""
    if SOURCE in other.meta:
        model.meta[SOURCE] = other.meta[SOURCE]
    return model


def restore(written: onnx.ModelProto, model: onnx_ir.Model) -> None:
    """Give `written`, which is `model` as onnx-ir writes it, all that its file said and no edit has changed."""
    source = model.meta.get(SOURCE)
    if source is None:
        return
    for name in FIXED:
        written.ClearField(name)
        if source.HasField(name):
            setattr(written, name, getattr(source, name))
    if _versions(written) == _versions(source):
        _put(written.opset_import, source.opset_import)
    _put(written.metadata_props, _entries(source.metadata_props, written.metadata_props))
    functions = {_signature(function): function for function in source.functions}
    for function in written.functions:
        if (said := functions.get(_signature(function))) is not None:
            _restore_function(function, said)
    _restore_graph(written.graph, source.graph)


def _restore_function(written: onnx.FunctionProto, source: onnx.FunctionProto) -> None:
    made = onnx_ir.to_proto(onnx_ir.from_proto(source))
    if written == made:
        written.CopyFrom(source)
        return
    # Its nodes alone are edited.
    edited = list(written.node), list(written.value_info)
    written.CopyFrom(source)
    _put(written.node, edited[0])
    _put(written.value_info, edited[1])
    _restore_nodes(written, source, frozenset())
    _restore_value_info(written, source)


def _restore_graph(written: onnx.GraphProto, source: onnx.GraphProto, outer: frozenset[str] = frozenset()) -> None:
    """`outer`: names of values around the graph that it may read."""
    _put(written.metadata_props, _entries(source.metadata_props, written.metadata_props))
    written.ClearField("doc_string")
    if source.HasField("doc_string"):
        written.doc_string = source.doc_string
    for ours, theirs in ((written.input, source.input), (written.output, source.output)):
        said = {value.name: value for value in theirs}
        _put(ours, [said.get(value.name, value) for value in ours])
    said_of_weights = {tensor.name: tensor.metadata_props for tensor in source.initializer}
    for tensor in written.initializer:
        if tensor.name in said_of_weights:
            _put(tensor.metadata_props, said_of_weights[tensor.name])
    _restore_nodes(written, source, outer)
    _restore_value_info(written, source)


def _restore_nodes(written: Body, source: Body, outer: frozenset[str]) -> None:
    """The node with the same outputs, where `written` has what onnx-ir makes of it; of one whose bodies were edited, all else."""
    before = {_outputs(node): node for node in source.node}
    pairs = [(node, before[_outputs(node)]) for node in written.node if _outputs(node) in before]
    pairs = [(node, original) for node, original in pairs if node != original]
    # onnx-ir is given a graph, as it looks for what nodes and their inner graphs read.
    changed = onnx.GraphProto(name=source.name, node=[original for _, original in pairs])
    read = outer | (_values(source) - _values(changed))
    changed.input.extend(onnx.ValueInfoProto(name=name) for name in sorted(read))
    made = onnx_ir.to_proto(onnx_ir.from_proto(changed)).node
    for (node, original), same in zip(pairs, made, strict=True):
        if node == same:
            node.CopyFrom(original)
        elif node.op_type == original.op_type and _bodies(original):
            edited = onnx.NodeProto()
            edited.CopyFrom(node)
            node.CopyFrom(original)
            if edited.input != same.input:
                # A constant that it read was computed, and may have another name now.
                del node.input[:]
                node.input.extend(edited.input)
            for body, ours, theirs in zip(_bodies(node), _bodies(edited), _bodies(original), strict=True):
                body.CopyFrom(ours)
                _restore_graph(body, theirs, outer | _values(source))


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs in a node's attributes."""
    attributes = [attribute for attribute in node.attribute if attribute.HasField("g") or attribute.graphs]
    return [graph for attribute in attributes for graph in (attribute.graphs or [attribute.g])]


def _restore_value_info(written: Body, source: Body) -> None:
    """What was said of values that are still there, in its order; then what is said of new values that are no weights."""
    gone = _values(source) - _values(written)
    kept = [value for value in source.value_info if value.name not in gone]
    known = {value.name for value in kept} | _values(source)
    if isinstance(written, onnx.GraphProto):
        known |= {tensor.name for tensor in written.initializer}
    _put(written.value_info, [*kept, *(value for value in written.value_info if value.name not in known)])


def _values(graph: Body) -> set[str]:
    """Names of all values in a graph (or function) itself."""
    made = {name for node in graph.node for name in node.output}
    if isinstance(graph, onnx.FunctionProto):
        return made | set(graph.input)
    return made | {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}


def _outputs(node: onnx.NodeProto) -> tuple[str, ...]:
    """What tells a node from all others: its outputs, without the empty ones at the end."""
    names = list(node.output)
    while names and not names[-1]:
        names.pop()
    return tuple(names)


def _versions(proto: onnx.ModelProto) -> dict[str, int]:
    return {opset.domain: opset.version for opset in proto.opset_import}


def _signature(function: onnx.FunctionProto) -> tuple[str, str, str]:
    return function.domain, function.name, function.overload


def _entries(
    old: Iterable[onnx.StringStringEntryProto], new: Iterable[onnx.StringStringEntryProto]
) -> list[onnx.StringStringEntryProto]:
    """The `new` entries: those whose key is among the `old` first, in their order."""
    values = {entry.key: entry for entry in new}
    first = {entry.key: values[entry.key] for entry in old if entry.key in values}
    return [*first.values(), *(entry for key, entry in values.items() if key not in first)]


def _put(field: Any, messages: Iterable[Any]) -> None:
    """Sets a repeated field."""
    copies = []
    for message in messages:
        copies.append(type(message)())
        copies[-1].CopyFrom(message)
    del field[:]
    field.extend(copies)
