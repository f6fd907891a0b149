"""What a converter gets to see of a node: attributes with the schema's defaults, constant inputs, no way to change them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnx.defs
import onnx_ir as ir
import torch
from torch import Tensor

Array = npt.NDArray[np.generic]


# Element types of the file, as torch calls them; what is not here cannot be imported.
DTYPES: dict[int, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool,
}


def onnx_type(dtype: torch.dtype) -> ir.DataType:
    """The inverse of `DTYPES`. Raises KeyError for a type that ONNX lacks."""
    return ir.DataType({torch_type: code for code, torch_type in DTYPES.items()}[dtype])


class Refusal(Exception):
    """Why one node cannot be imported, and what to do; collected by the builder into one UnsupportedError."""

    def __init__(self, why: str, advice: str) -> None:
        super().__init__(f"{why}; {advice}")


class NodeView:
    """A read-only view of one node.

    `constants` are the values known at import that training does not change; reading one with `constant`, `integers` or
    `scalar` binds it: the callable then gets None in its place. `learned` values are visible to `peek` only.
    """

    def __init__(
        self, node: ir.Node, opset: int, constants: Mapping[ir.Value, Tensor], learned: Mapping[ir.Value, Tensor] | None = None
    ) -> None:
        self._node = node
        self._constants = constants
        self._learned = learned or {}
        self.opset = opset
        self.op = node.op_type
        self.domain = "" if node.domain == "ai.onnx" else node.domain
        self.key = node.outputs[0].name or ""
        self.name = node.name or self.key
        self.bound: set[int] = set()

    @property
    def inputs(self) -> int:
        """Number of inputs, trailing absent ones included."""
        return len(self._node.inputs)

    @property
    def outputs(self) -> int:
        return len(self._node.outputs)

    def has(self, index: int) -> bool:
        """Whether input `index` is present."""
        return index < len(self._node.inputs) and self._node.inputs[index] is not None

    def used(self, index: int) -> bool:
        """Whether anything reads output `index`."""
        if index >= len(self._node.outputs):
            return False
        output = self._node.outputs[index]
        return bool(output.uses()) or output.is_graph_output()

    def source(self, index: int) -> ir.Node | None:
        """The node that makes input `index`."""
        value = self._node.inputs[index] if self.has(index) else None
        return None if value is None else value.producer()

    def rank(self, index: int) -> int | None:
        """Number of axes of input `index`, where the file says it."""
        known = self.peek(index)
        if known is not None:
            return known.ndim
        value = self._node.inputs[index] if self.has(index) else None
        return None if value is None or value.shape is None else len(value.shape)

    def dtype(self, index: int) -> ir.DataType | None:
        """Element type of input `index`, where the file says it."""
        value = self._node.inputs[index] if self.has(index) else None
        if value is None:
            return None
        known = self._learned.get(value, self._constants.get(value))
        return value.dtype if known is None else onnx_type(known.dtype)

    def readers(self, index: int) -> list[str]:
        """The ops that read output `index`; a graph that gives it as its own output counts as one of no name."""
        output = self._node.outputs[index]
        return [node.op_type for node, _ in output.uses()] + [""] * output.is_graph_output()

    # Attributes

    def given(self, name: str) -> bool:
        """Whether the file sets the attribute itself."""
        return name in self._node.attributes

    def attr_int(self, name: str, default: int | None = None) -> int:
        value = self._attribute(name, default)
        if not isinstance(value, int):
            raise Refusal(f"attribute {name} = {value!r} is not an integer", "correct the node")
        return value

    def attr_float(self, name: str, default: float | None = None) -> float:
        value = self._attribute(name, default)
        if not isinstance(value, (int, float)):
            raise Refusal(f"attribute {name} = {value!r} is not a number", "correct the node")
        return float(value)

    def attr_string(self, name: str, default: str | None = None) -> str:
        value = self._attribute(name, default)
        if not isinstance(value, str):
            raise Refusal(f"attribute {name} = {value!r} is not a string", "correct the node")
        return value

    def attr_ints(self, name: str) -> list[int] | None:
        """A list of integers, or None where the attribute is absent."""
        attribute = self._of_type(name, ir.AttributeType.INTS)
        return None if attribute is None else [int(value) for value in attribute.as_ints()]

    def attr_floats(self, name: str) -> list[float] | None:
        """A list of numbers, or None where the attribute is absent."""
        attribute = self._of_type(name, ir.AttributeType.FLOATS)
        return None if attribute is None else [float(value) for value in attribute.as_floats()]

    def attr_strings(self, name: str) -> list[str] | None:
        """A list of strings, or None where the attribute is absent."""
        attribute = self._of_type(name, ir.AttributeType.STRINGS)
        return None if attribute is None else list(attribute.as_strings())

    def array(self, name: str) -> Array | None:
        """A tensor attribute, or None where it is absent."""
        attribute = self._of_type(name, ir.AttributeType.TENSOR)
        return None if attribute is None else attribute.as_tensor().numpy()

    def _of_type(self, name: str, kind: ir.AttributeType) -> ir.Attr | None:
        attribute = self._node.attributes.get(name)
        if attribute is not None and attribute.type != kind:
            raise Refusal(
                f"attribute {name} has the type {attribute.type.name}", f"its type must be {kind.name}: correct the node"
            )
        return attribute

    def _attribute(self, name: str, default: object) -> object:
        attribute = self._node.attributes.get(name)
        if attribute is not None:
            return attribute.value
        if default is not None:
            return default
        schema = onnx.defs.get_schema(self.op, self.opset, self.domain).attributes.get(name)
        if schema is None or not schema.default_value.name:
            raise Refusal(f"attribute {name} is missing", "the schema demands it: correct the node")
        value = onnx.helper.get_attribute_value(schema.default_value)
        return value.decode() if isinstance(value, bytes) else value

    def torch_type(self, name: str) -> torch.dtype:
        """An attribute that names an element type. Raises Refusal for one that torch lacks."""
        code = self.attr_int(name)
        if code not in DTYPES:
            raise self.refuse(name, ir.DataType(code).name, "use a float, integer or bool type")
        return DTYPES[code]

    def refuse(self, name: str, value: object, advice: str) -> Refusal:
        """The refusal of one attribute's or input's value, to be raised."""
        return Refusal(f"{name} = {value!r} is not supported", advice)

    # Constant inputs

    def peek(self, index: int) -> Array | None:
        """The constant or learned value of input `index` as it is in the file, or None; it stays an input."""
        value = self._node.inputs[index] if self.has(index) else None
        if value is None:
            return None
        tensor = self._learned.get(value, self._constants.get(value))
        return None if tensor is None else numpy_of(tensor)

    def constant(self, index: int) -> Array | None:
        """The constant value of input `index`, bound; None where it is absent, learned or computed."""
        value = self._node.inputs[index] if self.has(index) else None
        tensor = None if value is None else self._constants.get(value)
        if tensor is None:
            return None
        self.bound.add(index)
        return numpy_of(tensor)

    def integers(self, index: int) -> list[int] | None:
        """A constant vector (or scalar) of integers, bound; None where it is absent or computed."""
        array = self.constant(index)
        return None if array is None else [int(value) for value in np.atleast_1d(array)]

    def scalar(self, index: int) -> int | float | bool | None:
        """A constant of one element as a Python number, bound; None where it is absent or computed."""
        array = self.constant(index)
        if array is None:
            return None
        number = array.reshape(-1)[0].item()
        assert isinstance(number, (bool, int, float))
        return number


def numpy_of(tensor: Tensor) -> Array:
    """A CPU tensor as numpy; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach()
    array: Array = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


def listed(fixed: Sequence[int] | None, given: Tensor | None) -> list[int]:
    """Integers bound at import, or else read from a small CPU tensor at run time."""
    if fixed is not None:
        return list(fixed)
    assert given is not None
    values = given.tolist()
    return values if isinstance(values, list) else [values]
