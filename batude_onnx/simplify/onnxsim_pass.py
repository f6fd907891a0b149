"""onnxsim's folding (constants, Conv + BatchNorm), held to what the model promises outside.

onnxsim may rename, fold and drop nodes and weights. Inputs and outputs (names, order, types, dynamic axes), opset, IR
version, producer, metadata and doc strings are put back or checked here: whatever it adds to them (it writes some twenty
metadata entries about itself) is taken out again.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from importlib import import_module
from inspect import signature
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir

from batude_onnx.errors import ParityError

Feeds = Mapping[str, npt.NDArray[Any]]

# onnxsim takes and returns one protobuf message, which ends at 2 GB; some room is left for what it folds.
LARGEST_BYTES = 1_900_000_000
# From this IR version on, initializers need not be graph inputs too. onnxsim raises older models to it.
INITIALIZERS_APART = 4
# onnxsim's own 1e-4 and 1e-5 are tight for a deep network with folded BatchNorm; a wrong fold is off by far more.
CHECK_TOLERANCES = {"check_rtol": 1e-3, "check_atol": 1e-4}


def skip_reason(model: onnx_ir.Model) -> str | None:
    """Why `simplify` would leave `model` as it is, or None."""
    weights = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    size = sum(weight.nbytes for weight in weights if weight is not None)
    if size > LARGEST_BYTES:
        return f"its weights are {size / 1e9:.1f} GB, and onnxsim works on models below {LARGEST_BYTES / 1e9:.1f} GB"
    ir_version = model.ir_version or INITIALIZERS_APART
    if ir_version >= INITIALIZERS_APART and any(value.is_initializer() for value in model.graph.inputs):
        return "callers may replace weights that are inputs too, and onnxsim takes them for constants"
    return None


def simplify(model: onnx_ir.Model, feeds: Feeds | None = None) -> onnx_ir.Model:
    """A simplified copy of `model`, which stays as it was; `model` itself where `skip_reason` gives one.

    onnxsim runs both on `feeds`, a value of every input by name, and compares; without them on random numbers of the shapes that
    the model gives. Where it leaves a size besides the first of an input open, then only the ONNX checker judges the result, and
    the caller's parity check must.

    Raises ParityError where onnxsim's check fails, or where its result has other inputs, outputs, opset or IR version.
    """
    if skip_reason(model) is not None:
        return model
    original = onnx_ir.to_proto(_in_memory(model))
    simplified, same = _run_quietly(original, feeds)
    if not same:
        raise ParityError("onnxsim's result computes something else than the model it was given; run with --no-simplify")
    _restore(simplified, original)
    return onnx_ir.from_proto(simplified)


def _in_memory(model: onnx_ir.Model) -> onnx_ir.Model:
    """A copy of `model` with all weights in memory, as onnxsim cannot follow external data of a message."""
    return onnx_ir.external_data.load_to_model(model.clone())


def _fed(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The graph inputs that a caller must feed."""
    held = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in held]


def _test_shapes(proto: onnx.ModelProto) -> dict[str, list[int]] | None:
    """The shape to test each input with, or None where a size stays unknown; an open batch axis becomes 1."""
    known: dict[str, list[int]] = {}
    for value in _fed(proto.graph):
        declared = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not declared.HasField("shape"):
            return None
        sizes = [size.dim_value for size in declared.shape.dim]
        if any(size <= 0 for size in sizes[1:]):
            return None
        known[value.name] = [max(1, size) for size in sizes]
    return known


def _run_quietly(proto: onnx.ModelProto, feeds: Feeds | None) -> tuple[onnx.ModelProto, bool]:
    """onnxsim's result and verdict; what it prints is kept from the terminal."""
    # Imported here since it takes two seconds, which most runs of the command line do not need.
    onnxsim: Any = import_module("onnxsim")
    shapes = _test_shapes(proto) if feeds is None else {name: list(array.shape) for name, array in feeds.items()}
    options: dict[str, Any] = {"check_n": 0} if shapes is None else {"check_n": 1, "test_input_shapes": shapes}
    if feeds is not None:
        options["input_data"] = dict(feeds)
    # Older releases have the check without a choice of its tolerances.
    known = signature(onnxsim.simplify).parameters
    options |= {name: value for name, value in CHECK_TOLERANCES.items() if name in known}
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            # A copy, since older releases change the model that they are given.
            given = onnx.ModelProto()
            given.CopyFrom(proto)
            simplified, same = onnxsim.simplify(given, **options)
    except Exception as error:  # onnxsim's C++, onnx and onnxruntime have no common base for what they raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ParityError(f"onnxsim cannot simplify this model ({reason}); run with --no-simplify") from error
    return simplified, bool(same)


def _restore(simplified: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Gives `simplified` the outside of `original`; raises ParityError where that is not possible."""
    _require_same("inputs", [value.name for value in _fed(simplified.graph)], [value.name for value in _fed(original.graph)])
    _require_same("outputs", [value.name for value in simplified.graph.output], [value.name for value in original.graph.output])
    if original.ir_version < INITIALIZERS_APART:
        simplified.ir_version = original.ir_version
    _require_same("IR version", simplified.ir_version, original.ir_version)
    before = {(opset.domain, opset.version) for opset in original.opset_import}
    after = {(opset.domain, opset.version) for opset in simplified.opset_import}
    _require_same("opset", sorted(after - before), [])
    # The messages themselves are put back: shape inference narrows or renames open sizes.
    _replace(simplified.graph.input, [*_fed(original.graph), *_weights_listed_as_inputs(simplified)])
    _replace(simplified.graph.output, original.graph.output)
    # What it has inferred of values on the way would only make the file larger.
    described = {value.name for value in original.graph.value_info}
    _replace(simplified.graph.value_info, [value for value in simplified.graph.value_info if value.name in described])
    _replace(simplified.opset_import, original.opset_import)
    _replace(simplified.metadata_props, original.metadata_props)
    _replace(simplified.graph.metadata_props, original.graph.metadata_props)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if original.HasField(field):
            setattr(simplified, field, getattr(original, field))
        else:
            simplified.ClearField(field)
    simplified.graph.name = original.graph.name
    simplified.graph.doc_string = original.graph.doc_string
    _restore_node_texts(simplified.graph, original.graph)


def _weights_listed_as_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """All weights for a model of old IR, where they must be inputs too; else none, as a caller has no need to feed them."""
    if proto.ir_version >= INITIALIZERS_APART:
        return []
    weights = proto.graph.initializer
    return [onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims) for weight in weights]


def _restore_node_texts(simplified: onnx.GraphProto, original: onnx.GraphProto) -> None:
    """Doc strings and metadata of nodes that are still there: the same op with the same first output."""
    before = {(node.op_type, node.output[0]): node for node in original.node if node.output}
    for node in simplified.node:
        source = before.get((node.op_type, node.output[0])) if node.output else None
        if source is not None:
            node.doc_string = source.doc_string
            _replace(node.metadata_props, source.metadata_props)


def _replace(field: Any, values: Sequence[Any]) -> None:
    """Sets a repeated field of a message."""
    copies = list(values)
    del field[:]
    field.extend(copies)


def _require_same(what: str, after: object, before: object) -> None:
    if after != before:
        raise ParityError(f"onnxsim changed the model's {what} from {before} to {after}; run with --no-simplify")
