"""A copy of a model that gives values from anywhere in it, those of bodies too.

A value of a branch leaves it as one more output, for which the other branch gives zeros; one of a loop's body as one more row for
each step, and these rows are added up. So only what may be summed can be taken out of bodies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from batude_onnx import layers
from batude_onnx.records import FloatArray
from batude_onnx.validation import Session, open_graph

# Opsets from which on these take what was an attribute as an input.
PAD_INPUTS, REDUCE_INPUTS = 11, 13
# From this opset on, Scan has no batch of its own.
SCAN = 9


class Probe:
    """The copy, which has the distinct names of all values, and none of the model's outputs.

    Outputs are asked for one by one, then `open` gives the session that computes them.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = layers.distinct(model).clone()
        self.values = {str(value.name): value for node in layers.all_nodes(self.model) for value in node.outputs}
        self.opset: int = self.model.opset_imports.get("", self.model.opset_imports.get("ai.onnx", 1))
        self._holders = layers.holders(self.model)
        self._outputs = list(self.model.graph.outputs)
        self._count = 0
        self.model.graph.outputs.clear()

    def give(self, value: ir.Value | None = None) -> list[str]:
        """Make a value of the main graph an output (None: all that the model gives), and say under which names."""
        wanted = self._outputs if value is None else [value]
        held = {id(output) for output in self.model.graph.outputs}
        self.model.graph.outputs.extend(output for output in wanted if id(output) not in held)
        return [str(output.name) for output in wanted]

    def open(self, provider: str, threads: int | None) -> Session:
        """A session that computes what was asked for, and no more."""
        RemoveUnusedNodesPass()(self.model)
        return open_graph(self.model, provider, threads)

    def node(self, graph: ir.Graph, op: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any] | None = None) -> ir.Value:
        """The output of a new node at the end of a graph."""
        made = ir.node(op, inputs, attributes or {}, name=self._name())
        made.outputs[0].name = self._name()
        graph.append(made)
        return made.outputs[0]

    def constant(self, graph: ir.Graph, array: FloatArray | np.ndarray[Any, np.dtype[np.int64]]) -> ir.Value:
        """A new constant at the end of a graph."""
        return self.node(graph, "Constant", [], {"value": ir.Tensor(array, name=self._name())})

    def sum_first(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        """The sum over the first axis."""
        if self.opset < REDUCE_INPUTS:
            return self.node(graph, "ReduceSum", [value], {"axes": [0], "keepdims": 0})
        axes = self.constant(graph, np.array([0]))
        return self.node(graph, "ReduceSum", [value, axes], {"keepdims": 0})

    def reachable(self, graph: ir.Graph) -> bool:
        """Whether values can be taken out of a graph."""
        while graph is not self.model.graph:
            node = self._holders.get(graph)
            if node is None or node.graph is None or node.op_type not in ("If", "Loop", "Scan"):
                return False
            if node.op_type == "Scan" and self.opset < SCAN:
                return False
            graph = node.graph
        return True

    def lift(self, graph: ir.Graph, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """A float32 value that `graph` computes, in the main graph: the sum over all runs of the bodies that hold it."""
        while graph is not self.model.graph:
            node = self._holders[graph]
            assert node.graph is not None
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    body = attribute.as_graph()
                    self._leave(body, value if body is graph else self.constant(body, np.zeros(shape, np.float32)), shape)
            node.resize_outputs(len(node.outputs) + 1)
            value, graph = node.outputs[-1], node.graph
            value.name = self._name()
            if node.op_type != "If":
                self._stack(node)
                value = self.sum_first(graph, value)
        return value

    def _leave(self, body: ir.Graph, value: ir.Value, shape: tuple[int, ...]) -> None:
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        body.outputs.append(value)

    def _stack(self, node: ir.Node) -> None:
        """Say of one more output of a Scan where its rows go, if that is said of the others."""
        for name in ("scan_output_axes", "scan_output_directions"):
            if node.op_type == "Scan" and name in node.attributes:
                node.attributes.add(ir.AttrInt64s(name, [*node.attributes[name].as_ints(), 0]))

    def _name(self) -> str:
        self._count += 1
        return f"batude_probe_{self._count}"
