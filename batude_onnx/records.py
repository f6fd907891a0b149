"""The frozen records that pass from room to room.

A *site* is one node of the graph whose weight may be replaced by a chain of smaller layers. All weights are held in one
canonical form, (S, C/groups, *kernel): S output channels, C input channels; a linear layer has an empty kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Computed(Mapping[str, T]):
    """A mapping whose values are made each time they are asked for, as all of them at once would be too much."""

    names: tuple[str, ...]
    make: Callable[[str], T]

    def __getitem__(self, name: str) -> T:
        if name not in self.names:
            raise KeyError(name)
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input. `pads` is ONNX's order: all begins, then all ends.

    `transposed`: it walks over its output instead, as ConvTranspose does; `output_padding` is what that adds at the ends.
    """

    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1
    auto_pad: str = "NOTSET"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @staticmethod
    def pointwise(dimensions: int, groups: int = 1) -> Geometry:
        """A 1x1 convolution over `dimensions` spatial axes (0: a linear layer)."""
        return Geometry((1,) * dimensions, (0,) * (2 * dimensions), (1,) * dimensions, groups)


@dataclass(frozen=True)
class Layout:
    """How a file stores what is (S, C/groups, *kernel) in canonical form; for arrays and torch tensors alike.

    `axes`: the order in which the node reads the stored axes, None where it is their own. `swapped`: what it reads is
    (C, S/groups, *kernel).
    """

    axes: tuple[int, ...] | None = None
    swapped: bool = False
    groups: int = 1

    def canonical(self, stored: Any) -> Any:
        """The canonical weight of a stored one; a view where that is possible."""
        read = stored if self.axes is None else _permuted(stored, self.axes)
        return self._swap(read) if self.swapped else read

    def stored(self, canonical: Any) -> Any:
        """The inverse of `canonical`."""
        read = self._swap(canonical) if self.swapped else canonical
        return read if self.axes is None else _permuted(read, tuple(map(self.axes.index, range(len(self.axes)))))

    def _swap(self, weight: Any) -> Any:
        """Inputs for outputs, group by group: its own inverse."""
        first, second, *kernel = weight.shape
        apart = weight.reshape(self.groups, first // self.groups, second, *kernel).swapaxes(1, 2)
        return apart.reshape(self.groups * second, first // self.groups, *kernel)


def _permuted(array: Any, axes: tuple[int, ...]) -> Any:
    """numpy's `transpose`, by exchanges, which torch calls by the same name."""
    order = list(range(len(axes)))
    for place, axis in enumerate(axes):
        other = order.index(axis)
        if other != place:
            array = array.swapaxes(place, other)
            order[place], order[other] = order[other], order[place]
    return array


@dataclass(frozen=True)
class LayerSpec:
    """One layer of a chain: weight (S, C/groups, *kernel), bias (S,) or None."""

    weight: FloatArray
    bias: FloatArray | None
    geometry: Geometry


@dataclass(frozen=True)
class FactorChain:
    """The layers that replace one site, in the order in which data passes them; `method` names who made them, of which ranks."""

    method: str
    layers: tuple[LayerSpec, ...]
    ranks: tuple[int, ...] = ()

    @property
    def weights(self) -> int:
        """Number of weight elements in all layers, biases left out."""
        return sum(layer.weight.size for layer in self.layers)


@dataclass(frozen=True)
class Site:
    """One layer found in the graph.

    `key` is the node's first output name, unique in the graph; `data` names the value that it is applied to. `positions` is
    how many times the kernel is applied per sample (the product of the output's spatial sizes; in a run of a file that fixes
    its batch, times that batch), 0 where shapes are unknown;
    `input_positions` the same for the input, since a factor in front of a strided core runs on the larger map;
    `halfway_positions` the same for a kernel that walks over the first spatial axis alone. A transposed convolution applies its
    kernel at each position of its input: `outgoing_positions` then says how many its output has.
    `method` names the decomposition, or is None and `reason` says why the layer is left whole. `layout`: how the file stores
    the weight. `normalised`: a BatchNormalization reads the layer's output. `joined`: the output of
    the Add that alone reads this layer's output, where no other layer stands between the two (so that its other side is known
    when this layer is fitted), else None.
    """

    key: str
    node: str
    op: str
    weight: str
    bias: str | None
    shape: tuple[int, ...]
    geometry: Geometry
    positions: int
    input_positions: int
    method: str | None
    reason: str | None = None
    layout: Layout = Layout()
    normalised: bool = False
    data: str = ""
    joined: str | None = None
    halfway_positions: int = 0
    outgoing_positions: int | None = None

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.shape[2:]

    @property
    def channels_out(self) -> int:
        return self.shape[0]

    @property
    def channels_in(self) -> int:
        return self.shape[1] * self.geometry.groups

    @property
    def output_positions(self) -> int:
        """Positions of the output, per sample."""
        return self.positions if self.outgoing_positions is None else self.outgoing_positions

    @property
    def params(self) -> int:
        """Weight elements, bias left out."""
        return prod(self.shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample."""
        return self.params * self.positions


@dataclass(frozen=True)
class Cost:
    """What a layer or a network costs: weight elements and multiply-accumulates per sample."""

    params: int
    macs: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs)

    def of(self, metric: str) -> int:
        """The value of `metric`, 'params' or 'macs'."""
        return {"params": self.params, "macs": self.macs}[metric]


@dataclass(frozen=True)
class Budget:
    """The most that the written file may cost: `limit` in units of `metric`; `text` is what the user wrote."""

    metric: str
    limit: int
    text: str


@dataclass(frozen=True)
class RankPlan:
    """Ranks of every compressible site; None keeps that layer whole. `cost` is the whole network's, predicted."""

    ranks: Mapping[str, tuple[int, ...] | None]
    cost: Cost

    def chosen(self) -> dict[str, tuple[int, ...]]:
        """The sites that will be replaced, with their ranks."""
        return {key: ranks for key, ranks in self.ranks.items() if ranks is not None}


@dataclass(frozen=True)
class TrainResult:
    """What training hands on: chains for the chosen sites, new values of every other weight by initializer name."""

    plan: RankPlan
    chains: Mapping[str, FactorChain]
    weights: Mapping[str, FloatArray]
    biases: Mapping[str, FloatArray]
    history: tuple[Mapping[str, float | int | str], ...] = ()


@dataclass(frozen=True)
class OutputDifference:
    """How far one output of two graphs lies apart, over all samples compared."""

    output: str
    max_absolute: float
    max_relative: float
    cosine: float
    within: bool


@dataclass(frozen=True)
class Divergence:
    """The first node of a graph, in its order, whose value another graph has not: `difference.output` names that value."""

    node: str
    op: str
    difference: OutputDifference

    def __str__(self) -> str:
        far = f"{self.difference.max_absolute:.3g}, relative {self.difference.max_relative:.3g}"
        return f"the first to differ is node {self.node!r} ({self.op}; value {self.difference.output!r} by {far})"


@dataclass(frozen=True)
class Comparison:
    """Two files held against each other: what they cost, how their outputs differ, how good and how fast they are.

    Quality is in percent (top1, top5, top1_agreement), in nats (cross_entropy) or a cosine; `latency["ratio"]` is above 1 where
    `other` is faster. `divergence`: where outputs that differ begin to, if that was looked for.
    """

    original: str
    other: str
    cost_original: Cost
    cost_other: Cost
    differences: tuple[OutputDifference, ...]
    quality_original: Mapping[str, float] = field(default_factory=dict)
    quality_other: Mapping[str, float] = field(default_factory=dict)
    latency: Mapping[str, float | int | str] = field(default_factory=dict)
    divergence: Divergence | None = None


@dataclass(frozen=True)
class Verdict:
    """The finished run as proved on the written file; `asdict` of it is what `--json` prints.

    `ranks` and `methods`: of the layers replaced. `whole`: each layer left whole, with the reason. `surgery`: the same rewrite
    at full rank against the original. `parity`: the written file against what was trained. `comparison`: the written file
    against the original.
    """

    budget: Budget
    ranks: Mapping[str, tuple[int, ...]]
    methods: Mapping[str, str]
    whole: Mapping[str, str]
    surgery: tuple[OutputDifference, ...]
    parity: tuple[OutputDifference, ...]
    comparison: Comparison
    facts: Mapping[str, object] = field(default_factory=dict)
    history: tuple[Mapping[str, float | int | str], ...] = ()
