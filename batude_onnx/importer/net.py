"""The imported network: a schedule of steps over numbered slots.

Slot 0 is always None (an absent input). A step takes the values of some slots and puts its results into others; a slot is
emptied right after its last reader. Weights keep their initializers' names: the name is split at its dots into plain
nested modules, so `state_dict()` gives exactly the file's names. Names are written into torch's own dictionaries, so
that a name may also be the prefix of another ("a" and "a.b") or equal an attribute of nn.Module ("training"). A name
with a leading dot stays in one piece, since torch would drop the dot; `load_state_dict` then needs strict=False.

A constant that is learned is a Parameter, any other float constant that data meets a buffer. Integers that only meet
shapes stay in CPU memory, as plain tensors in the list that every forward pass starts from.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from batude_onnx.importer.registry import Op

NONE = 0

S = TypeVar("S", bound="Store")


class Step(nn.Module):
    """One node of the graph: `op` on the node's inputs. Hooks on it see the op's own result, before any `after`."""

    op: Op

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, *inputs: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        return self.op(*inputs)


class Store(nn.Module):
    """A part of a weight's name; it only holds what lies below that name."""

    def train(self: S, mode: bool = True) -> S:
        """As in nn.Module, but also where "training" is the name of a weight."""
        object.__setattr__(self, "training", mode)
        for child in self.children():
            child.train(mode)
        return self


@dataclass(frozen=True)
class Held:
    """A parameter or buffer: its slot, its name in the file, and the place in the tree that holds it."""

    slot: int
    name: str
    store: nn.Module
    leaf: str
    learned: bool
    in_file: bool


@dataclass
class Call:
    """One node's place in the graph: `take` are the slots of its inputs, `give` those of its outputs."""

    key: str
    take: tuple[int, ...]
    give: tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """A weight as the builder hands it over; `learned` makes it a Parameter, else it is a buffer.

    `in_file`: the file holds a constant of that name; others were computed from constants at import.
    """

    slot: int
    name: str
    tensor: Tensor
    learned: bool
    in_file: bool = True


# The network's inputs -> the values that it cannot compute itself.
Source = Callable[[Sequence[Tensor]], Sequence[Tensor]]
# A step, what is wrapped around it, the slots that it takes and gives (and the first of these), and those that are spent then.
Planned = tuple[nn.Module, nn.Module | None, tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]


class Pass:
    """A forward pass that can stop in front of a step and go on from there, also with what stands there by then.

    Steps that have been passed are not run again, whatever happens to them.
    """

    def __init__(self, net: GraphNet, values: list[Tensor | None], at: int = 0) -> None:
        self.net, self._values, self._next = net, values, at

    def advance(self, key: str) -> None:
        """Run all steps in front of the one of that key. Raises KeyError, and ValueError where that one has been run."""
        stop = self.net._at(key)
        if stop < self._next:
            raise ValueError(f"step '{key}' lies behind where this pass stands")
        self._run(stop)

    def fork(self) -> Pass:
        """Another pass that stands in the same place."""
        return Pass(self.net, self._values.copy(), self._next)

    def finish(self) -> tuple[Tensor, ...]:
        """Run all that is left; the network's outputs."""
        self._run(len(self.net._calls))
        return tuple(self._values[slot] for slot in self.net._out)  # type: ignore[misc]

    def _run(self, stop: int) -> None:
        order = self.net._order
        self.net._run(self._values, self.net._plan[bisect_left(order, self._next) : bisect_left(order, stop)])
        self._next = stop


class GraphNet(Store):
    """An ONNX graph as a torch module; see `import_graph`."""

    def __init__(
        self,
        inputs: Sequence[tuple[str, int]],
        outputs: Sequence[tuple[str, int]],
        weights: Sequence[Weight],
        host: Mapping[int, Tensor],
        calls: Sequence[Call],
        ops: Sequence[Op],
        slots: int,
        given: Sequence[tuple[str, int]] = (),
        refused: str = "",
    ) -> None:
        """`inputs`, `outputs`: names with slots; `host`: integer constants that stay in CPU memory, by slot.

        `given`: values that this network cannot compute itself, with slots; `refused`: what could not be imported, and why.
        """
        super().__init__()
        self.refused = refused
        self._source: Source | None = None
        self.input_names = tuple(name for name, _ in inputs)
        self.output_names = tuple(name for name, _ in outputs)
        self._in = tuple(slot for _, slot in inputs)
        self._out = tuple(slot for _, slot in outputs)
        self._blank: list[Tensor | None] = [host.get(slot) for slot in range(slots)]
        self._calls = list(calls)
        self._index = {call.key: index for index, call in enumerate(calls)}
        self._steps_name = _unused("@steps", (weight.name for weight in weights))
        self._after_name = _unused("@after", (weight.name for weight in weights))
        self._modules[self._steps_name] = nn.ModuleList(Step(op) for op in ops)
        self._modules[self._after_name] = nn.ModuleDict()
        self._held = [self._hold(weight) for weight in weights]
        self._by_name = {held.name: held for held in self._held}
        self._schedule()
        read = {slot for planned in self._plan for slot in planned[2]}
        self.given_names = tuple(name for name, slot in given if slot in read)
        self._given = tuple(slot for _, slot in given if slot in read)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs and outputs in the order of `input_names` and `output_names`."""
        values = self._start(inputs)
        self._run(values, self._plan)
        return tuple(values[slot] for slot in self._out)  # type: ignore[misc]

    def begin(self, *inputs: Tensor) -> Pass:
        """A forward pass that stands in front of the first step."""
        return Pass(self, self._start(inputs))

    def _start(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """What each slot holds in front of the first step, but for the weights."""
        if len(inputs) != len(self._in):
            raise ValueError(f"the network takes {len(self._in)} inputs ({', '.join(self.input_names)}), not {len(inputs)}")
        values = self._blank.copy()
        for slot, value in zip(self._in, inputs, strict=True):
            values[slot] = value
        if self._given:
            if self._source is None:
                raise ValueError(f"the network must be fed with {', '.join(self.given_names)}, which it cannot compute")
            for slot, value in zip(self._given, self._source(inputs), strict=True):
                values[slot] = value
        return values

    def feed(self, source: Source) -> None:
        """From now on `source(inputs)` is asked for the values of `given_names`, in their order, in each forward pass."""
        self._source = source

    def _run(self, values: list[Tensor | None], plan: Sequence[Planned]) -> None:
        """Execute some steps, in place of `values`."""
        for held in self._held:
            values[held.slot] = _value(held)
        for step, after, take, give, single, spent in plan:
            result = step(*[values[slot] for slot in take])
            if after is not None:
                result = after(result)
            if isinstance(result, tuple):
                for slot, part in zip(give, result, strict=False):
                    values[slot] = part
            else:
                values[single] = result
            for slot in spent:
                values[slot] = None

    def weight(self, name: str) -> Tensor:
        """The parameter or buffer of one initializer. Raises KeyError for a name that no step uses."""
        if name not in self._by_name:
            raise KeyError(f"no step uses a weight named '{name}'")
        return _value(self._by_name[name])

    def weight_names(self) -> tuple[str, ...]:
        """The names of all parameters and buffers that come from the file and that a step still uses."""
        return tuple(held.name for held in self._held if held.in_file)

    def readers(self, name: str) -> int:
        """How many steps use a weight, by its name: one in an unrolled loop is used by several."""
        held = self._by_name.get(name)
        return 0 if held is None else sum(held.slot in take for _, _, take, *_ in self._plan)

    def has_step(self, key: str) -> bool:
        """Whether the node whose first output is `key` is executed (and not computed at import)."""
        return key in self._index

    def operation(self, key: str) -> Op:
        """What the step of that key calls: its converter's callable, or the module that `replace` put there."""
        step = self._steps()[self._at(key)]
        assert isinstance(step, Step)
        return step.op

    def after(self, key: str) -> nn.Module | None:
        """What `wrap` has put behind this step, if anything."""
        return dict(self._afters().items()).get(str(self._at(key)))

    def step(self, key: str) -> nn.Module:
        """The module that executes the node whose first output is `key`.

        Raises KeyError; a node whose inputs are all constants was computed at import and has no step.
        """
        return self._steps()[self._at(key)]

    def replace(self, key: str, module: nn.Module) -> None:
        """From now on this step calls `module(x)` with its data input only; weights nobody uses any more are dropped.

        Raises ValueError where the node's first input is a weight, so that no data would be left.
        """
        index = self._at(key)
        call = self._calls[index]
        if not call.take or call.take[0] in {held.slot for held in self._held} | {NONE}:
            raise ValueError(f"step '{key}' has no data in its first input, so it cannot be replaced")
        step = self._steps()[index]
        assert isinstance(step, Step)
        step.op = module
        module.train(self.training)
        self._calls[index] = Call(key, call.take[:1], call.give)
        self._schedule()

    def wrap(self, key: str, after: nn.Module) -> None:
        """Put `after` behind the single output of this step. Raises ValueError where there is one already."""
        index = self._at(key)
        if len(self._calls[index].give) > 1:
            raise ValueError(f"step '{key}' has {len(self._calls[index].give)} outputs; only a single one can be wrapped")
        if str(index) in self._afters():
            raise ValueError(f"step '{key}' is wrapped already; unwrap it first")
        self._afters()[str(index)] = after
        after.train(self.training)
        self._schedule()

    def unwrap(self, key: str) -> nn.Module:
        """Take off and return what `wrap` put behind this step. Raises ValueError where there is nothing."""
        index = self._at(key)
        if str(index) not in self._afters():
            raise ValueError(f"step '{key}' is not wrapped")
        after = self._afters().pop(str(index))
        self._schedule()
        return after

    def _steps(self) -> nn.ModuleList:
        steps = self._modules[self._steps_name]
        assert isinstance(steps, nn.ModuleList)
        return steps

    def _afters(self) -> nn.ModuleDict:
        afters = self._modules[self._after_name]
        assert isinstance(afters, nn.ModuleDict)
        return afters

    def _at(self, key: str) -> int:
        if key not in self._index:
            raise KeyError(f"no step has the first output '{key}'")
        return self._index[key]

    def _hold(self, weight: Weight) -> Held:
        """Put a weight into the tree under its own name."""
        store: nn.Module = self
        # torch drops a leading dot from parameter names, so such a name stays in one piece.
        *parts, leaf = weight.name.split(".") if not weight.name.startswith(".") else [weight.name]
        for part in parts:
            inner = store._modules.get(part)
            if inner is None:
                inner = store._modules[part] = Store()
            store = inner
        if weight.learned:
            store._parameters[leaf] = nn.Parameter(weight.tensor)
        else:
            store._buffers[leaf] = weight.tensor
        return Held(weight.slot, weight.name, store, leaf, weight.learned, weight.in_file)

    def _schedule(self) -> None:
        """Find the steps that the outputs need, forget weights that no such step reads, and see who reads each slot last."""
        needed = set(self._out)
        alive: list[int] = []
        for index in reversed(range(len(self._calls))):
            call = self._calls[index]
            if needed.intersection(call.give):
                alive.append(index)
                needed.update(call.take)
        for held in self._held:
            if held.slot not in needed:
                (held.store._parameters if held.learned else held.store._buffers).pop(held.leaf)
        self._held = [held for held in self._held if held.slot in needed]
        self._by_name = {held.name: held for held in self._held}

        kept = {NONE, *self._out, *(slot for slot, value in enumerate(self._blank) if value is not None)}
        steps, afters = self._steps(), dict(self._afters().items())
        plan: list[Planned] = []
        for index in alive:
            call = self._calls[index]
            last = {*call.take, *call.give} - kept
            kept |= last
            plan.append((steps[index], afters.get(str(index)), call.take, call.give, call.give[0], tuple(last)))
        self._plan, self._order = plan[::-1], alive[::-1]


def _value(held: Held) -> Tensor:
    # The tree is asked each time: load_state_dict(assign=True), .to() and functional_call all exchange what it holds.
    tensor = (held.store._parameters if held.learned else held.store._buffers)[held.leaf]
    assert tensor is not None
    return tensor


def _unused(name: str, taken: Iterable[str]) -> str:
    first = {other.split(".")[0] for other in taken}
    while name in first:
        name = "@" + name
    return name
