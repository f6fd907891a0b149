"""The frozen records that pass from room to room.

A *site* is one node of the graph whose weight may be replaced by a chain of smaller layers. All weights are held in one
canonical form, (S, C/groups, *kernel): S output channels, C input channels; a linear layer has an empty kernel.
"""

from batude_onnx.records.arrays import Computed, FloatArray
from batude_onnx.records.budgets import Alignment, Budget, Cost, Limit, Prices, RankPlan, left_over
from batude_onnx.records.layers import FactorChain, Geometry, LayerSpec, Layout, Site
from batude_onnx.records.plans import LayerPlan, Outlook, Step, Tried
from batude_onnx.records.results import (
    Benchmark,
    Comparison,
    Divergence,
    Given,
    Judged,
    LayerTime,
    OutputDifference,
    TrainResult,
    Verdict,
    Wishes,
)

__all__ = [
    "Alignment",
    "Benchmark",
    "Budget",
    "Comparison",
    "Computed",
    "Cost",
    "Divergence",
    "FactorChain",
    "FloatArray",
    "Geometry",
    "Given",
    "Judged",
    "LayerPlan",
    "LayerSpec",
    "LayerTime",
    "Layout",
    "Limit",
    "Outlook",
    "OutputDifference",
    "Prices",
    "RankPlan",
    "Site",
    "Step",
    "TrainResult",
    "Tried",
    "Verdict",
    "Wishes",
    "left_over",
]
