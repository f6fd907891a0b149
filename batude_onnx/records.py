"""The frozen records that pass from room to room.

A *site* is one node of the graph whose weight may be replaced by a chain of smaller layers. All weights are held in one
canonical form, (S, C/groups, *kernel): S output channels, C input channels; a linear layer has an empty kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]


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

    `key` is the distinct name of the node's first output (see `layers.scopes`); `data` names the value that it is applied to.
    `positions` is how many times the kernel is applied per sample (the product of the output's spatial sizes; in a run of a file
    that fixes its batch, times that batch), 0 where shapes are unknown;
    `input_positions` the same for the input, since a factor in front of a strided core runs on the larger map;
    `halfway_positions` the same for a kernel that walks over the first spatial axis alone. A transposed convolution applies its
    kernel at each position of its input: `outgoing_positions` then says how many its output has.
    `method` names the decomposition, or is None and `reason` says why the layer is left whole. `layout`: how the file stores
    the weight. `normalised`: a BatchNormalization reads the layer's output. `joined`: the output of
    the Add that alone reads this layer's output, where no other layer stands between the two (so that its other side is known
    when this layer is fitted), else None. `inside`: the ops, or the function, in whose bodies the node stands, outermost first.
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
    inside: tuple[str, ...] = ()

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
    """What a layer or a network costs: weight elements, multiply-accumulates per sample, bytes of the file, ms of a run.

    The last two are of whole networks, and 0 where nobody has asked.
    """

    params: int
    macs: int
    size: float = 0
    latency: float = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs, self.size + other.size, self.latency + other.latency)

    def of(self, metric: str) -> Any:
        """The value of `metric`, the name of a field."""
        return getattr(self, metric)


@dataclass(frozen=True)
class Limit:
    """The most that the written file may cost: `limit` in units of `metric`; `text` is what the user wrote.

    `ratio`: how many times less than the original that is, where it was asked for so.
    """

    metric: str
    limit: float
    text: str
    ratio: float | None = None


@dataclass(frozen=True)
class Budget:
    """Limits that must all hold, one for each metric that is limited."""

    limits: tuple[Limit, ...]

    @property
    def text(self) -> str:
        """As the user wrote it."""
        return ", ".join(limit.text for limit in self.limits)


@dataclass(frozen=True)
class Alignment:
    """Which ranks suit the runtime, whose `block` of channels is computed at a time.

    Whole blocks only in a mode whose largest useful rank is `whole_from` or more: that is fastest. In the others a rank may be as
    fine as a quarter of itself: multiples of 4 from one block up (other channels fall back to a slower path), of half a block
    from two, of a block from four.
    """

    block: int = 1
    whole_from: float = float("inf")

    def fits(self, rank: Any, most: int) -> Any:
        """For a number, or for an array of them, of a mode whose largest useful rank is `most`."""
        if self.block == 1 or most >= self.whole_from:
            return rank % self.block == 0
        fine = (rank < self.block) | (rank % min(4, self.block) == 0)
        half = (rank < 2 * self.block) | (rank % max(1, self.block // 2) == 0)
        return fine & half & ((rank < 4 * self.block) | (rank % self.block == 0))


@dataclass(frozen=True)
class Prices:
    """What a layer costs under one metric: whole, and at each combination of ranks, `ranks[r1 - 1, r2 - 1, ...]`."""

    whole: float
    ranks: FloatArray


@dataclass(frozen=True)
class RankPlan:
    """Ranks of every compressible site; None keeps that layer whole. `cost` is the whole network's, predicted."""

    ranks: Mapping[str, tuple[int, ...] | None]
    cost: Cost

    def chosen(self) -> dict[str, tuple[int, ...]]:
        """The sites that will be replaced, with their ranks."""
        return {key: ranks for key, ranks in self.ranks.items() if ranks is not None}


@dataclass(frozen=True)
class LayerPlan:
    """What is planned for one layer: ranks and method, or None and the reason; what it costs before and after, and what its
    truncation is predicted to do to the outputs."""

    key: str
    op: str
    method: str | None
    ranks: tuple[int, ...] | None
    reason: str | None
    before: Cost
    after: Cost
    loss: float


@dataclass(frozen=True)
class Step:
    """What another budget would give; None where it cannot be met."""

    budget: str
    predicted: Cost | None
    loss: float | None


@dataclass(frozen=True)
class Tried:
    """One layer alone at `share` of its price or less: the best ranks, and the damage that they do."""

    share: float
    ranks: tuple[int, ...]
    damage: float


@dataclass(frozen=True)
class Outlook:
    """What a plan promises. `loss`: the sum of all layers' damage to the outputs where that was `measured`, else of the shares of
    their weights' energy that is lost."""

    model: str
    budget: Budget
    original: Cost
    predicted: Cost
    loss: float
    measured: bool
    layers: tuple[LayerPlan, ...]
    sweep: tuple[Step, ...] = ()
    sensitivity: Mapping[str, tuple[Tried, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainResult:
    """What training hands on: chains for the chosen sites, new values of every other weight by initializer name.

    `kept`: why sites were left whole that the plan does not name.
    """

    plan: RankPlan
    chains: Mapping[str, FactorChain]
    weights: Mapping[str, FloatArray]
    biases: Mapping[str, FloatArray]
    history: tuple[Mapping[str, float | int | str], ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What one input is fed. `shape`: all of it, with None in the place of a batch that is open, or None: not said.
    `low`, `high`: the range of its values, both included, or None: not said, and for floats standard normal."""

    shape: tuple[int | None, ...] | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Wishes:
    """What is asked of the inputs that are generated: of some of them all, and sizes by the name of a dimension."""

    inputs: Mapping[str, Given] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)


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
class LayerTime:
    """What one layer takes in two files, in ms: as it stands in the first, and what stands in its place in the other.

    `links`: the layers that stand in its place. `macs_*` per sample, 0 where sizes are unknown.
    """

    key: str
    links: int
    first_ms: float
    other_ms: float
    macs_first: int
    macs_other: int


@dataclass(frozen=True)
class Benchmark:
    """Two files run against each other. `latency`: one sample (or one fixed batch) at a time, `throughput`: a batch at a time,
    both as `compare_latency` gives them. `memory`: what a process needs to load and run each, in bytes, beside what it needs
    without. `layers`: those that both have. `rest_*`: what all else takes, in ms. `macs_*` of the whole files."""

    first: str
    other: str
    latency: Mapping[str, float | int | str]
    throughput: Mapping[str, float | int | str]
    memory: tuple[int, int]
    layers: tuple[LayerTime, ...]
    rest_first: float
    rest_other: float
    macs_first: int
    macs_other: int


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
