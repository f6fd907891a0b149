"""Sub-graphs whose course is known at import become part of the graph around them: the chosen branch, the unrolled loop.

An op registered with `expand` says what replaces its node, by means of a `Splice`; the work is done on a copy of the model.
Names stay those of the file. Where a name is taken, because two branches use it or a body is repeated, "#1", "#2" and so
on are added to it; constants of a body are shared by all its repetitions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ShapeInferencePass
from torch import Tensor

from batude_onnx.importer.constants import is_constant_node, origin, stored, torch_tensor
from batude_onnx.importer.registry import Entry, find
from batude_onnx.importer.view import NodeView, Refusal

# A value as it is for two different guesses of the sizes that the file leaves open. What is the same in both does not depend on
# them, as long as sizes are only measured and moved about in between, and nothing is computed of them.
Guesses = tuple[Tensor, Tensor]


@dataclass
class Inlined:
    """A model without those sub-graphs that could be resolved; why the others could not; constants under new names."""

    model: ir.Model
    refused: dict[ir.Node, Refusal] = field(default_factory=dict)
    renamed: set[ir.Value] = field(default_factory=set)


def inline(model: ir.Model) -> Inlined:
    """Resolve all sub-graphs that the outputs need. The model itself is returned where it has none, else a copy."""
    if not any(_graphs(node) for node in model.graph):
        return Inlined(model)
    # A round trip, since `clone` demands sorted nodes.
    done = Inlined(ir.from_proto(ir.to_proto(model)))
    inliner = _Inliner(done)
    # What has been resolved may give the rest its sizes.
    while inliner.resolve_all() and done.refused:
        pass
    return done


def live_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that the outputs need, in the file's order as far as that is a valid one."""
    return _sorted(graph, {node for value in graph.outputs if (node := value.producer()) is not None})


def _sorted(graph: ir.Graph, wanted: set[ir.Node]) -> list[ir.Node]:
    needed: set[ir.Node] = set()
    stack = [node for node in wanted if node.graph is graph]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(_before(node))
    done: dict[ir.Node, None] = {}
    for first in graph:
        stack = [first] if first in needed else []
        while stack:
            missing = [node for node in _before(stack[-1]) if node not in done]
            if missing:
                stack.extend(missing)
            else:
                done[stack.pop()] = None
    return list(done)


def _graphs(node: ir.Node) -> list[ir.Graph]:
    return [attribute.as_graph() for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH]


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, in its sub-graphs too."""
    yield from (value for value in node.inputs if value is not None)
    for graph in _graphs(node):
        yield from graph.outputs
        for inner in graph:
            yield from reads(inner)


def _before(node: ir.Node) -> list[ir.Node]:
    """The nodes of the same graph whose results a node needs."""
    if not _graphs(node):
        return [before for before in node.predecessors() if before.graph is node.graph]
    found = (value.producer() for value in reads(node))
    return list(dict.fromkeys(before for before in found if before is not None and before.graph is node.graph))


def opset_of(model: ir.Model, node: ir.Node) -> int:
    """The version of the op set that a node belongs to."""
    imports = model.graph.opset_imports
    domain = "" if node.domain == "ai.onnx" else node.domain
    other = "ai.onnx" if domain == "" else domain
    return imports.get(domain, imports.get(other, 1))


class Splice:
    """What the expansion of one node may read, and put in its place."""

    def __init__(self, inliner: _Inliner, node: ir.Node, opset: int) -> None:
        self._inliner, self._node, self.opset = inliner, node, opset
        self.outputs = len(node.outputs)

    def has(self, index: int) -> bool:
        """Whether input `index` is present."""
        return index < len(self._node.inputs) and self._node.inputs[index] is not None

    def inputs(self, first: int = 0) -> list[ir.Value]:
        """The node's inputs from `first` on. Raises Refusal where one of them is absent."""
        found = [value for value in self._node.inputs[first:] if value is not None]
        if len(found) != len(self._node.inputs[first:]):
            raise Refusal("one of its inputs is absent", "correct the node")
        return found

    def known(self, value: ir.Value | int) -> Tensor | None:
        """The value (or the input of that index), if it only depends on constants."""
        if isinstance(value, int):
            given = self._node.inputs[value]
            return None if given is None else self._inliner.known(given)
        return self._inliner.known(value)

    def graph(self, name: str) -> ir.Graph:
        """A sub-graph by its attribute's name. Raises Refusal where it is missing."""
        attribute = self._node.attributes.get(name)
        if attribute is None or attribute.type != ir.AttributeType.GRAPH:
            raise Refusal(f"attribute {name} is missing", "the schema demands it: correct the node")
        return attribute.as_graph()

    def place(self, graph: ir.Graph, inputs: Sequence[ir.Value] = ()) -> list[ir.Value]:
        """Put the nodes of a sub-graph in front of the node; what its outputs are there."""
        return self._inliner.place(self._node, graph, inputs)

    def constant(self, tensor: ir.TensorProtocol) -> ir.Value:
        """A constant that is not in the file."""
        return self._inliner.constant(tensor)

    def node(self, op: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr] = ()) -> ir.Value:
        """The result of a node that is not in the file."""
        return self._inliner.add(self._node, ir.Node("", op, list(inputs), list(attributes)))


def _sized(value: ir.Value) -> Guesses | None:
    """Tensors without elements of the declared sizes, an open one being 2 and 3."""
    if value.shape is None:
        return None
    first, second = (
        torch.empty([s if isinstance(s, int) else open_one for s in value.shape], device="meta") for open_one in (2, 3)
    )
    return first, second


class _Inliner:
    """Works on the copy of a model. `shared`: constants of sub-graphs that the graph itself holds by now; `placed`: the nodes
    that the expansion in progress has put into it."""

    def __init__(self, done: Inlined) -> None:
        self._done, self._graph = done, done.model.graph
        self._shared: dict[ir.Value, ir.Value] = {}
        self._guesses: dict[ir.Value, Guesses | None] = {}
        self._placed: list[ir.Node] = []
        graphs = [self._graph, *self._graph.subgraphs()]
        held = [value for graph in graphs for value in graph.initializers.values()]
        held += [node.outputs[0] for graph in graphs for node in graph if is_constant_node(node)]
        self._holders = Counter(value.name for value in held)
        self._taken = {value.name for node in self._graph for value in node.outputs}
        self._taken |= {value.name for value in self._graph.inputs} | set(self._graph.initializers)

    def _next(self) -> ir.Node | None:
        """A live node with sub-graphs that has not been looked at."""
        nodes = live_nodes(self._graph)
        return next((node for node in nodes if _graphs(node) and node not in self._done.refused), None)

    def resolve_all(self) -> bool:
        """Look at every live node with sub-graphs once; whether one of them has been resolved."""
        self._done.refused.clear()
        self._guesses.clear()
        ShapeInferencePass()(self._done.model)
        progress = False
        while (node := self._next()) is not None:
            progress |= self._resolve(node)
        return progress

    def _resolve(self, node: ir.Node) -> bool:
        """Replace a node by what it expands to, or note why that is not possible; whether it was."""
        try:
            expand = self._entry(node).expand
            if expand is None:
                raise Refusal("it holds a sub-graph", "export the network without it")
            results = expand(Splice(self, node, opset_of(self._done.model, node)))
        except Refusal as refusal:
            self._done.refused[node] = refusal
            self._take_back()
            return False
        for old, new in zip(node.outputs, results, strict=True):
            if old.is_graph_output():
                name, old.name = old.name, None
                new = self.add(node, ir.Node("", "Identity", [new]))
                new.name, new.type, new.shape = name, old.type, old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
        self._placed.clear()
        return True

    def _take_back(self) -> None:
        """Remove what an expansion that was then given up has put into the graph; constants may stay, as nothing reads them."""
        self._taken -= {value.name for node in self._placed for value in node.outputs}
        self._graph.remove(self._placed, safe=True)
        self._placed.clear()

    def _entry(self, node: ir.Node) -> Entry:
        return find(node.domain, node.op_type, opset_of(self._done.model, node))

    def known(self, value: ir.Value) -> Tensor | None:
        """Constants, and what is computed from nothing else but them and from sizes that the file fixes."""
        guesses = self._guess(value)
        return guesses[0] if guesses is not None and torch.equal(*guesses) else None

    def _guess(self, value: ir.Value) -> Guesses | None:
        value = origin(value)
        if value not in self._guesses:
            self._guesses[value] = self._computed(value)
        return self._guesses[value]

    def _computed(self, value: ir.Value) -> Guesses | None:
        tensor = stored(value)
        if tensor is not None:
            return (torch_tensor(tensor),) * 2
        node = value.producer()
        if node is None or _graphs(node) or not node.inputs:
            return None
        try:
            entry = self._entry(node)
        except Refusal:
            # It is refused in its own name, where it is needed.
            return None
        read = [given for given in node.inputs if given is not None]
        found = {given: self._guess(given) or (_sized(given) if entry.makes_host else None) for given in read}
        known = {given: guesses for given, guesses in found.items() if guesses is not None}
        free = {given for given, guesses in known.items() if guesses[0].device.type == "cpu" and not torch.equal(*guesses)}
        may_be: dict[str, set[ir.Value | None]] = {"": set(), "first": {node.inputs[0]}, "all": {*free}}
        if len(known) < len(found) or (not entry.makes_host and not free <= may_be[entry.moves]):
            return None
        index = value.index() or 0
        return self._run(node, known, 0, index), self._run(node, known, 1, index)

    def _run(self, node: ir.Node, known: dict[ir.Value, Guesses], which: int, output: int) -> Tensor:
        """One output of a node for the first or the second guess of its inputs."""
        constants = {value: guesses[which] for value, guesses in known.items() if guesses[which].device.type == "cpu"}
        view = NodeView(node, opset_of(self._done.model, node), constants)
        op = self._entry(node).convert(view)
        given = [None if value is None or index in view.bound else known[value][which] for index, value in enumerate(node.inputs)]
        result = op(*given)
        return result[output] if isinstance(result, tuple) else result

    def place(self, before: ir.Node, graph: ir.Graph, inputs: Sequence[ir.Value]) -> list[ir.Value]:
        """Copies of a sub-graph's nodes in front of a node of the graph."""
        if len(inputs) != len(graph.inputs):
            raise Refusal(f"its body takes {len(graph.inputs)} inputs, not {len(inputs)}", "correct the node")
        copies = dict(zip(graph.inputs, inputs, strict=True))
        for value in graph.initializers.values():
            copies[value] = self._share(value)
        for node in _sorted(graph, set(graph)):
            if is_constant_node(node):
                copies[node.outputs[0]] = self._share(node.outputs[0])
                continue
            copy = _copy(node, copies)
            for value in copy.outputs:
                value.name = self._free(value.name)
            self._graph.insert_before(before, copy)
            self._placed.append(copy)
        return [copies.get(value, value) for value in graph.outputs]

    def add(self, before: ir.Node, node: ir.Node) -> ir.Value:
        """A node of our own in front of another; its output."""
        for value in node.outputs:
            value.name = self._free(f"{before.outputs[0].name}/{node.op_type}")
        self._graph.insert_before(before, node)
        self._placed.append(node)
        return node.outputs[0]

    def constant(self, tensor: ir.TensorProtocol) -> ir.Value:
        """A new initializer of the graph."""
        value = self._hold(self._free("constant"), tensor)
        self._done.renamed.add(value)
        return value

    def _share(self, value: ir.Value) -> ir.Value:
        """A constant of a sub-graph, held by the graph itself from now on, once."""
        if value not in self._shared:
            tensor = stored(value)
            assert tensor is not None
            name = self._free(value.name)
            # A weight that is trained must find its way back into the file.
            if tensor.dtype.is_floating_point() and (name != value.name or self._holders[name] > 1):
                raise Refusal(f"two values of the model are called '{value.name}'", "give them different names")
            copy = self._hold(name, tensor)
            if name != value.name:
                self._done.renamed.add(copy)
            self._shared[value] = copy
        return self._shared[value]

    def _hold(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=shape)
        self._graph.register_initializer(value)
        return value

    def _free(self, name: str | None) -> str:
        base = name or "value"
        candidate, number = base, 0
        while candidate in self._taken:
            number += 1
            candidate = f"{base}#{number}"
        self._taken.add(candidate)
        return candidate


def _copy(node: ir.Node, copies: dict[ir.Value, ir.Value]) -> ir.Node:
    """A node, with the sub-graphs that it holds, that reads `copies` of its inputs; its outputs join these."""
    inputs = [None if value is None else copies.get(value, value) for value in node.inputs]
    attributes = [
        ir.AttrGraph(name, _copy_graph(attribute.as_graph(), copies)) if attribute.type == ir.AttributeType.GRAPH else attribute
        for name, attribute in node.attributes.items()
    ]
    copy = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=len(node.outputs), name=node.name)
    for old, new in zip(node.outputs, copy.outputs, strict=True):
        copies[old] = new
        new.name, new.type, new.shape = old.name, old.type, old.shape
    return copy


def _copy_graph(graph: ir.Graph, copies: dict[ir.Value, ir.Value]) -> ir.Graph:
    for value in (*graph.inputs, *graph.initializers.values()):
        copies[value] = ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=value.const_value)
    nodes = [_copy(node, copies) for node in _sorted(graph, set(graph))]
    return ir.Graph(
        [copies[value] for value in graph.inputs],
        [copies.get(value, value) for value in graph.outputs],
        nodes=nodes,
        initializers=[copies[value] for value in graph.initializers.values()],
        name=graph.name,
    )
