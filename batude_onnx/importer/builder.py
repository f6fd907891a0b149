"""Graph -> schedule: which values are weights, constants, or computed; where each lives; what every node becomes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass
from torch import Tensor

from batude_onnx.errors import UnsupportedError
from batude_onnx.importer.constants import is_constant_node, origin, stored, torch_tensor, weight_behind
from batude_onnx.importer.inlining import Inlined, inline, live_nodes, opset_of, reads
from batude_onnx.importer.net import NONE, Call, GraphNet, Weight
from batude_onnx.importer.registry import Entry, Op, find
from batude_onnx.importer.view import DTYPES, NodeView, Refusal


def import_graph(model: ir.Model, *, cut: bool = False) -> GraphNet:
    """Turn an ONNX model into a torch module that computes the same and can be trained; the model is left untouched.

    Nodes that cannot be imported are cut out where `cut` allows it: what they read of values that learned weights have to do with
    becomes an output of the network, beside those of the model's outputs that it still computes, and what they give, where it is
    needed, has to be fed (`GraphNet.feed`). So are ops that no gradient passes through where they stand in front of all outputs.
    `GraphNet.refused` then says what was cut out and why.

    Raises UnsupportedError that names every node that cannot be imported, with the reason and what to do; with `cut`, where no
    learned weight is left.
    """
    return _Builder(inline(_without_functions(model)), cut).build()


def inlined(model: ir.Model) -> ir.Model:
    """`model`, or a copy of it, with functions and sub-graphs inlined as `import_graph` sees it: that names `given_names`."""
    return inline(_without_functions(model)).model


def _without_functions(model: ir.Model) -> ir.Model:
    if not model.functions:
        return model
    # A round trip, since `clone` demands sorted nodes and inlining changes the model.
    return InlinePass()(ir.from_proto(ir.to_proto(model))).model


@dataclass
class _Builder:
    """Works through the nodes in order. `constants` and `learned` are the values known at import."""

    inlined: Inlined
    cut: bool = False
    sloping: bool = False  # what no gradient passes through is cut out too
    constants: dict[ir.Value, Tensor] = field(default_factory=dict)
    learned: dict[ir.Value, Tensor] = field(default_factory=dict)
    slots: dict[ir.Value, int] = field(default_factory=dict)
    held: dict[tuple[ir.Value, bool], int] = field(default_factory=dict)
    on_host: set[ir.Value] = field(default_factory=set)
    host: dict[int, Tensor] = field(default_factory=dict)
    weights: list[Weight] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    refused: list[tuple[ir.Node, int, str]] = field(default_factory=list)
    given: dict[ir.Value, int] = field(default_factory=dict)
    moving: set[ir.Value] = field(default_factory=set)  # what learned weights have to do with
    count: int = NONE + 1

    def build(self) -> GraphNet:
        graph = self.inlined.model.graph
        inputs = [value for value in graph.inputs if not value.is_initializer()]
        for value in inputs:
            self.slots[value] = self._slot()
        nodes = live_nodes(graph)
        entries = {node: entry for node in nodes if (entry := self._entry(node)) is not None}
        for node, entry in entries.items():
            self._find_learned(node, entry)
        without = {node for node, _, _ in self.refused}
        for node in nodes:
            if node in without:
                self._leave_out(node)
            elif node in entries:
                self._add_or_refuse(node, entries[node])
        outputs = list(graph.outputs)
        if self.cut and not self.sloping and self.learned and not self.moving.intersection(outputs):
            return _Builder(self.inlined, cut=True, sloping=True).build()
        if self.refused:
            outputs = self._frontier() if self.cut else []
            if not outputs:
                raise UnsupportedError(_message(self.refused, len(nodes)))
        try:
            placed = [(value.name or "", self._held_or_computed(value, host=False)) for value in outputs]
        except Refusal as refusal:
            raise UnsupportedError(f"an output is a constant: {refusal}") from refusal
        named = [(value.name or "", self.slots[value]) for value in inputs]
        given = [(value.name, slot) for value, slot in self.given.items() if value.name]
        refused = _message(self.refused, len(nodes)) if self.refused else ""
        return GraphNet(named, placed, self.weights, self.host, self.calls, self.ops, self.count, given, refused)

    def _frontier(self) -> list[ir.Value]:
        """Outputs of the model, and values that nodes which are left out read, as far as learned weights have to do with them."""
        wanted = dict.fromkeys(self.inlined.model.graph.outputs)
        for node, _, _ in self.refused:
            wanted.update(dict.fromkeys(reads(node)))
        return [value for value in wanted if value in self.moving]

    def _leave_out(self, node: ir.Node) -> None:
        """What the node gives will have to be fed where it is read."""
        for value in node.outputs:
            self.slots[value] = self.given[value] = self._slot()

    def _slot(self) -> int:
        self.count += 1
        return self.count - 1

    def _opset(self, node: ir.Node) -> int:
        return opset_of(self.inlined.model, node)

    def _entry(self, node: ir.Node) -> Entry | None:
        """The registry's entry, or None for constants (which have no step) and for what is refused."""
        if is_constant_node(node) or stored(origin(node.outputs[0])) is not None:
            return None
        try:
            if node in self.inlined.refused:
                raise self.inlined.refused[node]
            entry = find(node.domain, node.op_type, self._opset(node))
            if self.sloping and entry.flat:
                raise Refusal("no gradient passes through it", "nothing: it stays as it is")
            return entry
        except Refusal as refusal:
            self.refused.append((node, self._opset(node), str(refusal)))
            return None

    def _find_learned(self, node: ir.Node, entry: Entry) -> None:
        view = NodeView(node, self._opset(node), {})
        for index in entry.learned_inputs(view):
            value = node.inputs[index] if index < len(node.inputs) else None
            weight = None if value is None else weight_behind(value)
            if weight is None or weight in self.learned:
                continue
            tensor = stored(weight)
            assert tensor is not None
            try:
                self.learned[weight] = torch_tensor(tensor)
            except Refusal as refusal:
                self.refused.append((node, self._opset(node), str(refusal)))

    def _known(self, value: ir.Value) -> Tensor | None:
        """The value if it is constant; read from the file at first use."""
        value = origin(value)
        if value in self.learned:
            return None
        if value not in self.constants:
            tensor = stored(value)
            if tensor is None:
                return None
            self.constants[value] = torch_tensor(tensor)
        return self.constants[value]

    def _add_or_refuse(self, node: ir.Node, entry: Entry) -> None:
        try:
            self._add(node, entry)
        except Refusal as refusal:
            self.refused.append((node, self._opset(node), str(refusal)))
            self._leave_out(node)

    def _add(self, node: ir.Node, entry: Entry) -> None:
        """Convert one node, then either compute it now or give it a place in the schedule."""
        for value in node.inputs:
            _check_type(value)
        known: dict[ir.Value, Tensor] = {}
        learned: dict[ir.Value, Tensor] = {}
        for value in node.inputs:
            if value is None:
                continue
            if origin(value) in self.learned:
                learned[value] = self.learned[origin(value)]
            elif (tensor := self._known(value)) is not None:
                known[value] = tensor
        view = NodeView(node, self._opset(node), known, learned)
        op = entry.convert(view)
        takes = [value if index not in view.bound else None for index, value in enumerate(node.inputs)]
        dynamic = [value for value in node.inputs if value is not None and value not in known]
        if not dynamic:
            self._fold(node, op(*[None if value is None else known[value] for value in takes]))
            return
        # Shape arithmetic stays in CPU memory, so that reading it never waits for an accelerator.
        free = [index for index, value in enumerate(takes) if value in dynamic and index not in entry.host]
        on_host = entry.makes_host or all(self._is_host(takes[index]) for index in free)
        moved = []
        slots = []
        for index, value in enumerate(takes):
            keep = on_host or index in entry.host
            slots.append(NONE if value is None else self._held_or_computed(value, host=keep))
            if not keep and self._is_host(value):
                moved.append(index)
        if moved:
            data = next(index for index in free if not self._is_host(takes[index]))
            op = _beside_data(op, data, frozenset(moved))
        if on_host:
            self.on_host.update(node.outputs)
        if not entry.flat and (learned or self.moving.intersection(dynamic)):
            self.moving.update(node.outputs)
        give = tuple(self._slot() for _ in node.outputs)
        self.slots.update(zip(node.outputs, give, strict=True))
        self.calls.append(Call(view.key, tuple(slots), give))
        self.ops.append(op)

    def _fold(self, node: ir.Node, result: Tensor | tuple[Tensor, ...]) -> None:
        results = result if isinstance(result, tuple) else (result,)
        self.constants.update(zip(node.outputs, results, strict=False))

    def _is_host(self, value: ir.Value | None) -> bool:
        return value is not None and value in self.on_host

    def _held_or_computed(self, value: ir.Value, host: bool) -> int:
        """The slot of a value. A constant gets one when it is first read: a weight, a buffer, or a tensor on the host."""
        root = origin(value)
        if root in self.learned:
            return self._hold(root, self.learned[root], learned=True)
        tensor = self._known(value)
        if tensor is None:
            if value not in self.slots:
                # Its node was refused, or is missing; either way the whole list of refusals is what gets raised.
                return NONE
            return self.slots[value]
        if not host:
            return self._hold(root, tensor, learned=False)
        if (root, True) not in self.held:
            slot = self.held[root, True] = self._slot()
            self.host[slot] = tensor
        return self.held[root, True]

    def _hold(self, root: ir.Value, tensor: Tensor, learned: bool) -> int:
        if (root, False) not in self.held:
            slot = self.held[root, False] = self._slot()
            in_file = stored(root) is not None and root not in self.inlined.renamed
            self.weights.append(Weight(slot, root.name or "", tensor, learned, in_file))
        return self.held[root, False]


def _check_type(value: ir.Value | None) -> None:
    """Raise Refusal where the file declares a value to be no tensor, or one of a type that torch lacks."""
    if value is None or value.type is None:
        return
    if not isinstance(value.type, ir.TensorType):
        raise Refusal(f"'{value.name}' is no tensor, but of the type {value.type}", "export the network without it")
    if value.type.dtype not in DTYPES:
        raise Refusal(f"tensor '{value.name}' has the element type {value.type.dtype.name}", "store it as float or integer")


def _beside_data(op: Op, data: int, moved: frozenset[int]) -> Op:
    """`op` with its inputs `moved` brought from CPU memory to where input `data` is."""

    def run(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        device = inputs[data].device
        return op(*[value.to(device) if index in moved else value for index, value in enumerate(inputs)])

    return run


def _message(refused: list[tuple[ir.Node, int, str]], nodes: int) -> str:
    counts = Counter(node.op_type for node, _, _ in refused)
    kinds = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    lines = [f"{len(refused)} of {nodes} nodes cannot be imported: {kinds}"]
    for node, opset, reason in refused:
        name = node.name or node.outputs[0].name
        domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
        lines.append(f"  node '{name}' ({domain}{node.op_type}, opset {opset}): {reason}")
    return "\n".join(lines)
