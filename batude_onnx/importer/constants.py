"""Values that are known at import: initializers, Constant nodes, and Identity of either; what leads back to a weight."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from batude_onnx.importer.view import DTYPES, Refusal

# A learned weight may reach its op through these; the step is then executed on the parameter in every forward pass.
_PASSED_THROUGH = frozenset(
    {"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "QuantizeLinear", "DequantizeLinear"}
)


def is_constant_node(node: ir.Node) -> bool:
    """Whether a node holds a tensor of the file."""
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx")


def torch_tensor(source: ir.TensorProtocol) -> Tensor:
    """A copy of an ONNX tensor that owns its memory. Raises Refusal for an element type that torch lacks."""
    dtype = DTYPES.get(source.dtype)
    if dtype is None:
        raise Refusal(f"tensor '{source.name}' has the element type {source.dtype.name}", "store it as float or integer")
    array = np.array(source.numpy(), order="C")
    if dtype is torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def origin(value: ir.Value) -> ir.Value:
    """The value behind any chain of Identity nodes."""
    producer = value.producer()
    while producer is not None and producer.op_type == "Identity" and producer.domain in ("", "ai.onnx"):
        inner = producer.inputs[0]
        assert inner is not None
        value, producer = inner, inner.producer()
    return value


def stored(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor that the file holds for a value: an initializer's, or a Constant node's. No copy is made."""
    producer = value.producer()
    if producer is None:
        return value.const_value if value.is_initializer() else None
    if not is_constant_node(producer):
        return None
    if "value" in producer.attributes:
        # As get_const_tensor does, which would also rename the file's own tensor.
        return producer.attributes["value"].as_tensor()
    return ir.convenience.get_const_tensor(value)


def weight_behind(value: ir.Value) -> ir.Value | None:
    """The stored float tensor that a learned input leads back to, through steps that change its layout, type or precision."""
    while True:
        value = origin(value)
        tensor = stored(value)
        if tensor is not None:
            return value if tensor.dtype.is_floating_point() else None
        producer = value.producer()
        if producer is None or producer.op_type not in _PASSED_THROUGH or producer.inputs[0] is None:
            return None
        value = producer.inputs[0]
