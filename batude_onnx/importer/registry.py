"""The table of ONNX ops: (domain, op, since-version) -> how such a node becomes a torch callable.

A converter is called once per node at import. It reads attributes and constant inputs from the node's view, refuses what
it cannot express, and returns a callable that takes the node's tensor inputs in ONNX's order (None for those that are
absent, or that the converter has already read as constants) and gives a tensor, or a tuple of tensors in output order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import onnx.defs
import onnx_ir as ir
from torch import Tensor

from batude_onnx.importer.view import NodeView, Refusal

if TYPE_CHECKING:
    from batude_onnx.importer.inlining import Splice

Op: TypeAlias = Callable[..., "Tensor | tuple[Tensor, ...]"]
Converter: TypeAlias = Callable[[NodeView], Op]
Moves: TypeAlias = Literal["", "first", "all"]
# What replaces a node that holds sub-graphs: a value for each of its outputs.
Expand: TypeAlias = "Callable[[Splice], list[ir.Value]]"
# The free sizes for a node, the constant ones that it has, and the batch that they were written for; None where they stay.
Follow: TypeAlias = "Callable[[ir.Node, list[int], int], list[int] | None]"
Learned: TypeAlias = "tuple[int, ...] | Callable[[NodeView], tuple[int, ...]]"


@dataclass(frozen=True)
class Entry:
    """One converter. `learned`: inputs that training may change where they are constants; `host`: inputs that hold
    shapes, axes and the like, read as Python ints and therefore kept in CPU memory; `makes_host`: so are its outputs;
    `moves`: its output's elements are some of those of its first input, or of all, unchanged, and which ones only depends on
    the other inputs; `flat`: no gradient passes through it; `expand`: for an op with sub-graphs, which is replaced before
    anything is converted; `sizes`: the input that holds sizes, and how these follow a batch that is opened."""

    convert: Converter
    learned: Learned = ()
    host: tuple[int, ...] = ()
    makes_host: bool = False
    moves: Moves = ""
    flat: bool = False
    expand: Expand | None = None
    sizes: tuple[int, Follow] | None = None

    def learned_inputs(self, node: NodeView) -> tuple[int, ...]:
        """The indices of this node's learned inputs."""
        return self.learned if isinstance(self.learned, tuple) else self.learned(node)


_ENTRIES: dict[tuple[str, str, int], Entry] = {}
_ABSENT: dict[tuple[str, str], str] = {}


def op(
    name: str,
    *since: int,
    learned: Learned = (),
    host: tuple[int, ...] = (),
    makes_host: bool = False,
    moves: Moves = "",
    flat: bool = False,
    sizes: tuple[int, Follow] | None = None,
    domain: str = "",
) -> Callable[[Converter], Converter]:
    """Register a converter for `name` at each of the schema versions `since`.

    Raises ValueError where one of them is taken.
    """

    def register(convert: Converter) -> Converter:
        _register(name, since, domain, Entry(convert, learned, host, makes_host, moves, flat, sizes=sizes))
        return convert

    return register


def expansion(name: str, *since: int) -> Callable[[Expand], Expand]:
    """Register what an op with sub-graphs is replaced by, at each of the schema versions `since`."""

    def unresolved(node: NodeView) -> Op:
        raise AssertionError(f"{node.op} is replaced before it is converted")

    def register(expand: Expand) -> Expand:
        _register(name, since, "", Entry(unresolved, expand=expand))
        return expand

    return register


def _register(name: str, since: Sequence[int], domain: str, entry: Entry) -> None:
    for version in since:
        key = (domain, name, version)
        if key in _ENTRIES:
            raise ValueError(f"the converter of {name}, since-version {version}, is registered twice")
        _ENTRIES[key] = entry


def absent(why: str, *names: str, domain: str = "") -> None:
    """Say of ops that have no converter why that is so ("*": all of the domain). Raises ValueError for one that has one."""
    for name in names:
        if any((where, what) == (domain, name) for where, what, _ in _ENTRIES):
            raise ValueError(f"{name} has a converter")
        _ABSENT[domain, name] = why


def find(domain: str, name: str, opset: int) -> Entry:
    """The entry for an op at the model's opset. Raises Refusal where there is none."""
    domain = "" if domain == "ai.onnx" else domain
    if not onnx.defs.has(name, domain=domain):
        known = f"domain '{domain}'" if domain else "ONNX"
        raise Refusal(f"{known} has no op of this name that the importer knows", "replace it by standard ONNX ops")
    try:
        since = onnx.defs.get_schema(name, opset, domain).since_version
    except onnx.defs.SchemaError:
        raise Refusal(f"the op does not exist at opset {opset}", "correct the model's opset_import") from None
    entry = _ENTRIES.get((domain, name, since))
    if entry is not None:
        return entry
    versions = sorted(version for where, what, version in _ENTRIES if (where, what) == (domain, name))
    if versions:
        advice = f"convert the model with onnx.version_converter to an opset that has version {_listed(versions)}"
        raise Refusal(f"its version {since} is not implemented", advice)
    why = _ABSENT.get((domain, name)) or _ABSENT.get((domain, "*"))
    raise Refusal(
        f"the op is not implemented by the importer{f': {why}' if why else ''}",
        "export the network without it, or cut the graph before it",
    )


def supported() -> tuple[str, ...]:
    """The names of all ops that have a converter, sorted."""
    return tuple(sorted({name for _, name, _ in _ENTRIES}))


def _listed(versions: list[int]) -> str:
    return " or ".join(str(version) for version in versions)
