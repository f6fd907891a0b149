"""A graph run piece by piece, so that the weights of one piece at a time are in memory.

    nodes 1..n   ->   nodes 1..a | a+1..b | ...        each a graph of its own, fed with what the earlier ones gave

onnxruntime holds all weights of a session, and for most a second time in the order in which its kernels read them. A piece has
about `PIECE_BYTES` of them (or a single node with more), and its session is closed before the next one is opened. The same
nodes compute the same values; only what onnxruntime would fuse across a border stays apart.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir

from batude_onnx.errors import ModelError

Arrays = Mapping[str, npt.NDArray[Any]]
Run = Callable[[onnx_ir.Model, Arrays], dict[str, Any]]

PIECE_BYTES = 128_000_000
# From this IR version on, initializers need not be graph inputs too.
INITIALIZERS_APART = 4
# What a weight may pass on the way to its layer.
PASSED = ("Constant", "Identity", "Cast", "Transpose")


class Declared(NamedTuple):
    """An input or output as onnxruntime describes it."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class Piece:
    """Some nodes in a row, and the constants that they read. `taken`: values from earlier pieces; `given`: values for later ones
    or for the graph's outputs."""

    nodes: tuple[onnx_ir.Node, ...]
    stored: tuple[onnx_ir.Value, ...]
    taken: tuple[onnx_ir.Value, ...]
    given: tuple[onnx_ir.Value, ...] = ()

    def model(self, whole: onnx_ir.Model, fed: Arrays) -> onnx_ir.Model:
        """The piece as a model, its inputs declared as `fed` has them."""
        view = onnx_ir.GraphView(
            self.taken, self.given, nodes=self.nodes, initializers=self.stored,
            opset_imports=whole.graph.opset_imports, name=whole.graph.name,
        )  # fmt: skip
        graph = view.clone()
        for value in graph.inputs:
            array = fed[str(value.name)]
            value.type = value.type or onnx_ir.TensorType(onnx_ir.DataType.from_numpy(array.dtype))
            value.shape = onnx_ir.Shape(array.shape) if isinstance(array, np.ndarray) else None
        version = max(whole.ir_version or 0, INITIALIZERS_APART)
        return onnx_ir.Model(graph, ir_version=version, functions=tuple(whole.functions.values()))


class Pieces:
    """Stands in for a native session of `model`: `run` opens and runs one piece, and closes it again."""

    def __init__(self, model: onnx_ir.Model, run: Run, size: int | None = None) -> None:
        self._model, self._run = model, run
        self.pieces = cut(model.graph, PIECE_BYTES if size is None else size)

    def get_inputs(self) -> list[Declared]:
        """All that must be fed."""
        return [_declared(value) for value in self._model.graph.inputs if not value.is_initializer()]

    def get_outputs(self) -> list[Declared]:
        """All outputs of the graph."""
        return [_declared(value) for value in self._model.graph.outputs]

    def run(self, names: None, feeds: Arrays) -> list[Any]:
        """The outputs for `feeds`, in order. Raises ModelError for an input that is not fed."""
        if missing := [value.name for value in self.get_inputs() if value.name not in feeds]:
            raise ModelError(f"the model cannot be run: inputs {', '.join(missing)} are not fed")
        outputs = self._model.graph.outputs
        alive: dict[str, Any] = {str(value.name): value.const_value.numpy() for value in outputs if value.const_value is not None}
        alive |= feeds
        wanted = {value.name for value in outputs}
        with _only_new_garbage():
            for number, piece in enumerate(self.pieces):
                taken = {str(value.name): alive[str(value.name)] for value in piece.taken}
                alive |= self._run(piece.model(self._model, taken), taken)
                # The nodes and values of a graph hold each other, and with them its weights, until they are looked for.
                gc.collect()
                later = wanted | {value.name for other in self.pieces[number + 1 :] for value in other.taken}
                alive = {name: array for name, array in alive.items() if name in later}
        return [alive[str(value.name)] for value in outputs]


@contextmanager
def _only_new_garbage() -> Iterator[None]:
    """Within, garbage is looked for only among what is made within: all that was there before takes 0.1 s for each look."""
    frozen = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        # What others have frozen before cannot be told from ours, and stays as they want it.
        if not frozen:
            gc.unfreeze()


def weight_bytes(model: onnx_ir.Model) -> int:
    """What all stored values of a model take."""
    held = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    held += [_held(value) for graph in model.graphs() for node in graph if node.op_type == "Constant" for value in node.outputs]
    return sum(tensor.nbytes for tensor in held if tensor is not None)


def cut(graph: onnx_ir.Graph, size: int) -> list[Piece]:
    """`graph` in pieces of at most `size` bytes of weights, or of one node with more.

    What is computed from constants alone, by nodes that only pass them on, goes with every piece that reads it.
    """
    fixed = _fixed(graph)
    groups: list[list[onnx_ir.Node]] = [[]]
    held: dict[onnx_ir.Value, int] = {}
    for node in graph:
        if node in fixed:
            continue
        tensors = {value: _held(value) for value in _behind(_reads(node, graph), fixed)}
        stored = {value: tensor.nbytes for value, tensor in tensors.items() if tensor is not None}
        if groups[-1] and stored.keys() - held.keys() and sum((held | stored).values()) > size:
            groups.append([])
            held = {}
        groups[-1].append(node)
        held |= stored
    pieces = [_piece(group, graph, fixed) for group in groups]
    passed = {value for piece in pieces for value in piece.taken} | set(graph.outputs)
    return [
        replace(piece, given=tuple(value for node in piece.nodes for value in node.outputs if value in passed))
        for piece in pieces
    ]


def _fixed(graph: onnx_ir.Graph) -> set[onnx_ir.Node]:
    """Nodes that give a constant, or pass one on."""
    fixed: set[onnx_ir.Node] = set()
    for node in graph:
        known = all(value is not None and (value.const_value is not None or value.producer() in fixed) for value in node.inputs)
        if known and node.op_type in PASSED and node.domain in ("", "ai.onnx") and not node.outputs[0].is_graph_output():
            fixed.add(node)
    return fixed


def _behind(values: Iterable[onnx_ir.Value], fixed: Collection[onnx_ir.Node]) -> dict[onnx_ir.Value, None]:
    """`values`, each behind all that it is fixed by."""
    found: dict[onnx_ir.Value, None] = {}
    for value in values:
        if (node := value.producer()) in fixed and node is not None:
            found |= _behind([given for given in node.inputs if given is not None], fixed)
        found[value] = None
    return found


def _piece(nodes: Sequence[onnx_ir.Node], graph: onnx_ir.Graph, fixed: Collection[onnx_ir.Node]) -> Piece:
    inside = {value for node in nodes for value in node.outputs}
    read = [value for value in _behind((value for node in nodes for value in _reads(node, graph)), fixed) if value not in inside]
    constants = [node for value in read if (node := value.producer()) is not None and node in fixed]
    stored = [value for value in read if value.producer() is None and value.const_value is not None]
    apart = {*stored, *(node.outputs[0] for node in constants)}
    return Piece((*constants, *nodes), tuple(stored), tuple(value for value in read if value not in apart))


def _reads(node: onnx_ir.Node, graph: onnx_ir.Graph) -> Iterator[onnx_ir.Value]:
    """The values of `graph` that a node or a graph inside of it reads."""
    bodies = [body for attribute in node.attributes.values() for body in _bodies(attribute)]
    inner = [value for body in bodies for user in onnx_ir.traversal.RecursiveGraphIterator(body) for value in user.inputs]
    for value in (*node.inputs, *inner, *(value for body in bodies for value in body.outputs)):
        if value is not None and value.graph is graph:
            yield value


def _bodies(attribute: onnx_ir.Attr) -> Sequence[onnx_ir.Graph]:
    if attribute.type == onnx_ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return attribute.as_graphs() if attribute.type == onnx_ir.AttributeType.GRAPHS else ()


def _held(value: onnx_ir.Value) -> onnx_ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node."""
    node = value.producer()
    if node is None:
        return value.const_value
    held = node.attributes.get("value") if node.op_type == "Constant" else None
    return None if held is None else held.as_tensor()


def _declared(value: onnx_ir.Value) -> Declared:
    shape = () if value.shape is None else tuple(size if isinstance(size, int) else size.value for size in value.shape)
    return Declared(str(value.name), f"tensor({value.dtype.name.lower()})" if value.dtype else "", shape)
