"""Small random CNNs as ONNX models: all that convolutional networks are made of, in any order and of any geometry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

from tests.layer_models import Array
from tests.loading_models import FLOAT, model_of

Draw = st.DrawFn


@dataclass(frozen=True)
class Map:
    """A value of the graph: (N, channels, *sizes) in a run on an input of the size drawn."""

    name: str
    channels: int
    sizes: tuple[int, int]


@dataclass
class Builder:
    """The graph so far. All values come from `rng`, all choices from `draw`."""

    draw: Draw
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    held: dict[str, Array] = field(default_factory=dict)

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}{len(self.nodes)}", **attributes))
        return name

    def hold(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> str:
        name = f"w{len(self.held)}"
        self.held[name] = (shift + scale * self.rng.standard_normal(shape)).astype(np.float32)
        return name

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def pair(self, *choices: int) -> list[int]:
        return [self.pick(*choices), self.pick(*choices)]


def _groups(build: Builder, *channels: int) -> int:
    fitting = [groups for groups in (1, 2, 4) if all(count % groups == 0 for count in channels)]
    return int(build.pick(*fitting))


def convolution(build: Builder, given: Map, out: int | None = None, weight: str | None = None) -> Map:
    """Strides, dilations, pads that differ from side to side, groups; `weight`: that of an earlier 3x3 layer without groups."""
    out = int(build.pick(4, 6, 8, 12)) if out is None else out
    if weight is not None:
        name = build.add("Conv", [given.name, weight], pads=[1, 1, 1, 1])
        return Map(name, len(build.held[weight]), given.sizes)
    kernel, strides, dilations = build.pair(1, 2, 3), build.pair(1, 1, 2), build.pair(1, 1, 2)
    spans = [dilation * (k - 1) + 1 for k, dilation in zip(kernel, dilations, strict=True)]
    pads = [build.pick(0, 1) if span > 1 else 0 for span in (*spans, *spans)]
    for axis, span in enumerate(spans):  # never smaller than what the kernel spans
        pads[axis] += max(0, span - given.sizes[axis] - pads[axis] - pads[axis + 2])
    sizes = [(given.sizes[a] + pads[a] + pads[a + 2] - spans[a]) // strides[a] + 1 for a in (0, 1)]
    groups = _groups(build, given.channels, out)
    each = given.channels // groups
    inputs = [given.name, build.hold(out, each, *kernel, scale=(2 / (each * kernel[0] * kernel[1])) ** 0.5)]
    if build.pick(True, False):
        inputs.append(build.hold(out, scale=0.1))
    name = build.add("Conv", inputs, kernel_shape=kernel, strides=strides, dilations=dilations, pads=pads, group=groups)
    return Map(name, out, (sizes[0], sizes[1]))


def transposed(build: Builder, given: Map) -> Map:
    out, kernel, strides = int(build.pick(4, 8)), build.pair(1, 2, 3, 4), build.pair(1, 2)
    more = [build.pick(0, 1) if stride > 1 else 0 for stride in strides]
    pads = [build.pick(0, 1) if k > 2 else 0 for k in (*kernel, *kernel)]
    sizes = [strides[a] * (given.sizes[a] - 1) + more[a] + kernel[a] - pads[a] - pads[a + 2] for a in (0, 1)]
    if min(sizes) < 1:
        pads, sizes = [0] * 4, [size + pads[a] + pads[a + 2] for a, size in enumerate(sizes)]
    groups = _groups(build, given.channels, out)
    scale = (1 / (given.channels // groups * kernel[0] * kernel[1])) ** 0.5
    inputs = [given.name, build.hold(given.channels, out // groups, *kernel, scale=scale)]
    if build.pick(True, False):
        inputs.append(build.hold(out, scale=0.1))
    name = build.add("ConvTranspose", inputs, strides=strides, pads=pads, output_padding=more, group=groups)
    return Map(name, out, (sizes[0], sizes[1]))


def normalised(build: Builder, given: Map) -> Map:
    c = given.channels
    vectors = [
        build.hold(c, scale=0.1, shift=1),
        build.hold(c, scale=0.1),
        build.hold(c, scale=0.1),
        build.hold(c, scale=0.1, shift=2),
    ]
    return Map(build.add("BatchNormalization", [given.name, *vectors]), c, given.sizes)


def rectified(build: Builder, given: Map) -> Map:
    return Map(build.add(build.pick("Relu", "Sigmoid", "HardSwish"), [given.name]), given.channels, given.sizes)


def residual(build: Builder, given: Map) -> Map:
    """The input added to two 3x3 layers of it, which may share their weight."""
    c = given.channels
    weight = build.hold(c, c, 3, 3, scale=(1 / (9 * c)) ** 0.5)
    first = rectified(build, convolution(build, given, weight=weight))
    other = weight if build.pick(True, False) else build.hold(c, c, 3, 3, scale=(1 / (9 * c)) ** 0.5)
    second = convolution(build, first, weight=other)
    return Map(build.add("Add", [second.name, given.name]), c, given.sizes)


def joined(build: Builder, given: Map) -> Map:
    """A 3x3 layer beside its input."""
    weight = build.hold(6, given.channels, 3, 3, scale=(1 / (9 * given.channels)) ** 0.5)
    beside = convolution(build, given, weight=weight)
    return Map(build.add("Concat", [beside.name, given.name], axis=1), 6 + given.channels, given.sizes)


def classified(build: Builder, given: Map, open_sizes: bool) -> str:
    """Flatten and Gemm; the map is averaged first where its size is open."""
    width, name = given.channels * given.sizes[0] * given.sizes[1], given.name
    if open_sizes or build.pick(True, False):
        width, name = given.channels, build.add("GlobalAveragePool", [given.name])
    flat, classes, turned = build.add("Flatten", [name]), int(build.pick(5, 10)), int(build.pick(0, 1))
    shape = (classes, width) if turned else (width, classes)
    return build.add("Gemm", [flat, build.hold(*shape, scale=width**-0.5), build.hold(classes, scale=0.1)], transB=turned)


@dataclass(frozen=True)
class Network:
    """A model with input x and output y, and samples for it, (N, C, H, W)."""

    model: onnx.ModelProto
    x: Array

    def __repr__(self) -> str:
        """What a failing example shows."""
        return f"x {self.x.shape}\n{onnx.printer.to_text(self.model.graph)[:4000]}"


@st.composite
def networks(draw: Draw) -> Network:
    """Two to five parts, each followed by BatchNormalization and an activation, or not; a classifier, or a map, at the end."""
    build = Builder(draw, np.random.default_rng(draw(st.integers(0, 2**20))))
    sizes = (draw(st.integers(5, 9)), draw(st.integers(5, 9)))
    at = Map("x", int(build.pick(3, 4, 8)), sizes)
    channels, open_sizes = at.channels, bool(build.pick(True, False, False))
    for _ in range(draw(st.integers(2, 5))):
        at = build.pick(convolution, convolution, transposed, residual, joined)(build, at)
        for follow in (normalised, rectified):
            at = follow(build, at) if build.pick(True, False) else at
    last = classified(build, at, open_sizes) if build.pick(True, False) else at.name
    for node in build.nodes:  # as the last value may be read by nothing else, it is renamed where it is made
        node.output[0] = "y" if node.output[0] == last else node.output[0]
    batch = build.pick("N", 2)
    declared = [batch, channels, *(("H", "W") if open_sizes else sizes)]
    x = helper.make_tensor_value_info("x", FLOAT, declared)
    y = helper.make_tensor_value_info("y", FLOAT, [None] * (4 if last == at.name else 2))
    model = model_of(build.nodes, [x], [y], build.held)
    onnx.checker.check_model(model, full_check=True)
    return Network(model, build.rng.standard_normal((2, channels, *sizes)).astype(np.float32))
