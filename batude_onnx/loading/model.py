"""An ONNX file read and checked: everything that is wrong with it is said here, before any work is done.

Protobuf is a forgiving format: random bytes and cut files often parse, as an empty message or as a graph without an end.
So a parsed file is not yet a model; it must hold an opset, nodes and outputs, its external data must be there in full, and
the ONNX checker must accept it. Weights in external files are measured, never read.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import onnx
import onnx_ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no stubs
from onnx_ir.passes.common import InlinePass

from batude_onnx.errors import ModelError
from batude_onnx.loading import fidelity
from batude_onnx.loading.checking import check_mended, check_with_onnx, inner_graphs, one_line
from batude_onnx.loading.soundness import require_complete, require_sources, require_text, require_types


def load_model(path: Path) -> onnx_ir.Model:
    """The model in `path`, external weights left on disk (they are memory-mapped when used).

    Raises ModelError, one line each, for a path that is no file, bytes that are no complete ONNX model, external data that
    is missing, short or outside of the model's folder, a model that the ONNX checker rejects, and the two things that
    onnx-ir would drop without a word (quantization annotations and sparse initializers).
    """
    proto = _parse(path)
    require_complete(proto, path)
    require_text(proto, path)
    require_sources(proto, path)
    require_types(_tensors(proto), path)
    _refuse_what_would_be_lost(proto, path)
    folder = path.resolve().parent
    external = [tensor for tensor in _tensors(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if external and path.is_symlink():
        # onnxruntime would look for the data beside the link.
        raise ModelError(f"{path}: this is a link, and the model has external data: give the path it leads to, {path.resolve()}")
    for tensor in external:
        _check_external(tensor, folder, path)
    in_order = check_with_onnx(proto, path)
    try:
        model = onnx_ir.serde.deserialize_model(proto)
        if not in_order:
            model.graph.sort()
            check_mended(onnx_ir.to_proto(model), path)
    except (onnx_ir.serde.SerdeError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise ModelError(f"{path}: onnx-ir cannot read this model ({one_line(error)}); simplify or re-export it") from error
    fidelity.remember(model, proto)
    onnx_ir.external_data.set_base_dir(model.graph, folder)
    for function in model.functions.values():
        onnx_ir.external_data.set_base_dir(function.graph, folder)
    _read_attributes(model)
    return model


def _read_attributes(model: onnx_ir.Model) -> None:
    """Tensors in attributes (of Constant nodes, above all) that lie in other files, read into memory.

    onnxruntime looks for those of a model in memory in the working folder, wherever the model came from.
    """
    graphs = [*model.graphs(), *(function.graph for function in model.functions.values())]
    for node in (node for graph in graphs for node in graph.all_nodes()):
        for attribute in node.attributes.values():
            held = attribute.value
            if isinstance(held, onnx_ir.ExternalTensor):
                node.attributes[attribute.name] = onnx_ir.AttrTensor(attribute.name, _read(held))


def _read(tensor: onnx_ir.ExternalTensor) -> onnx_ir.TensorProtocol:
    values = onnx_ir.Tensor(tensor.numpy().copy(), tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)
    tensor.release()
    return values


def without_functions(model: onnx_ir.Model) -> onnx_ir.Model:
    """`model`, which is used up, with the nodes of its functions in the place of each call. Raises ModelError where a call does
    not fit its function."""
    try:
        return InlinePass()(model).model if model.functions else model
    except ValueError as error:
        raise ModelError(
            f"a function cannot be put in the place of its call ({one_line(error)}): export the model again"
        ) from error


def external_files(model: onnx_ir.Model) -> tuple[Path, ...]:
    """The files beside the model that hold its weights, each once, in the order of first use."""
    found: dict[Path, None] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, onnx_ir.ExternalTensor):
                found[Path(value.const_value.path)] = None
    return tuple(found)


def _parse(path: Path) -> onnx.ModelProto:
    """The protobuf message in `path`, external data not read."""
    try:
        there = path.exists()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); give the path of an .onnx file") from error
    if not there:
        raise ModelError(f"{path}: no such file; give the path of an .onnx file")
    if not path.is_file():
        raise ModelError(f"{path}: this is not a file; give the path of an .onnx file")
    try:
        size = path.stat().st_size
        if size == 0:
            raise ModelError(f"{path}: the file is empty; export or download it again")
        # The format is fixed: onnx.load would otherwise read a .json or .txt by its suffix.
        return onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX model, or cut short ({size} bytes); export or download it again") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def _all_graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every graph in the attributes of nodes."""
    yield proto.graph
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        yield from inner_graphs(nodes)


def _refuse_what_would_be_lost(proto: onnx.ModelProto, path: Path) -> None:
    """onnx-ir drops these silently, and the written file would no longer be the same model."""
    for graph in _all_graphs(proto):
        if graph.quantization_annotation:
            names = ", ".join(note.tensor_name for note in graph.quantization_annotation[:3])
            raise ModelError(
                f"{path}: has {len(graph.quantization_annotation)} quantization annotations (of {names}), which would be lost; "
                "give the float model, before quantization"
            )
        if graph.sparse_initializer:
            names = ", ".join(sparse.values.name for sparse in graph.sparse_initializer[:3])
            raise ModelError(
                f"{path}: has {len(graph.sparse_initializer)} sparse initializers ({names}), which would be lost; "
                "store them as dense initializers"
            )
    if proto.training_info:
        raise ModelError(f"{path}: has training information, which would be lost; give the inference model")


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the model, in initializers and in attributes."""
    nodes = [node for graph in _all_graphs(proto) for node in graph.node]
    nodes += [node for function in proto.functions for node in function.node]
    tensors = [tensor for graph in _all_graphs(proto) for tensor in graph.initializer]
    for node in nodes:
        for attribute in node.attribute:
            tensors += [attribute.t] if attribute.HasField("t") else []
            tensors += attribute.tensors
    yield from tensors


def _check_external(tensor: onnx.TensorProto, folder: Path, path: Path) -> None:
    """The file that `tensor` names must lie in the model's `folder` and be long enough to hold it."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    try:
        file = (folder / location).resolve()
        there = file.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        # Too long, a link to itself, or with a NUL in it.
        raise ModelError(f"{path}: weight {tensor.name!r} has unreadable external data fields ({one_line(error)})") from error
    if not location or Path(location).is_absolute() or not file.is_relative_to(folder):
        raise ModelError(
            f"{path}: weight {tensor.name!r} points to external data {location!r} outside of the model's folder; "
            "move the data file beside the model and save it with a relative location"
        )
    if not there:
        raise ModelError(f"{path}: external data file {location!r} (weight {tensor.name!r}) is missing; put it into {folder}")
    if (folder / location).is_symlink() or file.stat().st_nlink > 1:
        raise ModelError(
            f"{path}: external data file {location!r} (weight {tensor.name!r}) is a link, or has a second name by a hard link, "
            "which ONNX does not read: put a copy of the file in its place"
        )
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        needed = -(-prod(tensor.dims) * onnx_ir.DataType(tensor.data_type).bitwidth // 8)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: weight {tensor.name!r} has unreadable external data fields ({one_line(error)})") from error
    size = file.stat().st_size
    if offset < 0 or 0 <= length < needed or offset + needed > size:
        raise ModelError(
            f"{path}: weight {tensor.name!r} needs {needed} bytes at offset {offset} of {location!r}, "
            f"which holds {size} bytes; the data file is cut short or belongs to another model"
        )
