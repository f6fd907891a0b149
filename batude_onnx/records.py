"""The frozen records that pass from room to room.

A *site* is one node of the graph whose weight may be replaced by a chain of smaller layers. All weights are held in one
canonical form, (S, C/groups, *kernel): S output channels, C input channels; a linear layer has an empty kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input. `pads` is ONNX's order: all begins, then all ends."""

    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1
    auto_pad: str = "NOTSET"

    @staticmethod
    def pointwise(dimensions: int, groups: int = 1) -> Geometry:
        """A 1x1 convolution over `dimensions` spatial axes (0: a linear layer)."""
        return Geometry((1,) * dimensions, (0,) * (2 * dimensions), (1,) * dimensions, groups)


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
    `halfway_positions` the same for a kernel that walks over the first spatial axis alone.
    `method` names the decomposition, or is None and `reason` says why the layer is left whole. `transposed`:
    the file stores the weight as (C, S). `normalised`: a BatchNormalization reads the layer's output. `joined`: the output of
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
    transposed: bool = False
    normalised: bool = False
    data: str = ""
    joined: str | None = None
    halfway_positions: int = 0

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
class Comparison:
    """Two files held against each other: what they cost, how their outputs differ, how good and how fast they are.

    Quality is in percent (top1, top5, top1_agreement), in nats (cross_entropy) or a cosine; `latency["ratio"]` is above 1 where
    `other` is faster.
    """

    original: str
    other: str
    cost_original: Cost
    cost_other: Cost
    differences: tuple[OutputDifference, ...]
    quality_original: Mapping[str, float] = field(default_factory=dict)
    quality_other: Mapping[str, float] = field(default_factory=dict)
    latency: Mapping[str, float | int | str] = field(default_factory=dict)


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
