"""What goes in and what comes out: inputs, training, comparisons, verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from batude_onnx.records.arrays import FloatArray
from batude_onnx.records.budgets import Budget, Cost, RankPlan
from batude_onnx.records.layers import FactorChain


@dataclass(frozen=True)
class Judged:
    """The loss that training was to lower, before (`start`) and after it (`trained`), on the same samples."""

    start: float
    trained: float

    @property
    def helped(self) -> bool:
        """Whether what was trained is kept: not where the loss rose, or is no number."""
        return self.trained <= self.start


@dataclass(frozen=True)
class TrainResult:
    """What training hands on: chains for the chosen sites, new values of every other weight by initializer name.

    `kept`: why sites were left whole that the plan does not name. `judged`: None where nothing was trained, or by labels alone.
    """

    plan: RankPlan
    chains: Mapping[str, FactorChain]
    weights: Mapping[str, FloatArray]
    biases: Mapping[str, FloatArray]
    history: tuple[Mapping[str, float | int | str], ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
    judged: Judged | None = None


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
