"""A CNN whose weights are larger than the memory that it is made in.

    x (N, 3, 16, 16) -> Conv 3x3/2 -> [Conv 3x3 K -> 2K, 3x3 2K -> K]... -> Conv 1x1 K -> C -> [Conv 1x1 C -> W, 1x1 W -> C]...
      -> mean -> [Gemm C -> W -> C]... -> Gemm -> y (N, 10)                                      each [block] with a sum

Weights are drawn one layer at a time (He et al., ICCV 2015) and go straight to the data file beside the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper

OPSET, IR_VERSION = 18, 10


@dataclass(frozen=True)
class Plan:
    """How many blocks of each kind there are, and how wide: `kernel` K, `channels` C, and `wide` W inside of a block."""

    kernel: int = 512
    channels: int = 64
    wide: int = 131072
    kernels: int = 1
    points: int = 36
    linear: int = 8

    @property
    def weights(self) -> int:
        """Of the blocks: all but a few thousand."""
        return 36 * self.kernels * self.kernel**2 + 2 * (self.points + self.linear) * self.channels * self.wide


@dataclass
class _Maker:
    file: BinaryIO
    location: str
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def weight(self, shape: tuple[int, ...], fan: int) -> str:
        name = f"w{len(self.tensors)}"
        offset = self.file.tell()
        values = self.rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32((1 / fan) ** 0.5)
        self.file.write(values.data)
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.location), ("offset", offset), ("length", 4 * prod(shape))):
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        return name

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"{op}{len(self.nodes)}", **attributes))  # type: ignore[arg-type]
        return name

    def conv(self, x: str, shape: tuple[int, ...], stride: int = 1) -> str:
        pad = shape[2] // 2
        return self.node("Conv", x, self.weight(shape, prod(shape[1:])), pads=[pad] * 4, strides=[stride] * 2)

    def block(self, x: str, first: tuple[int, ...], second: tuple[int, ...]) -> str:
        """x + second(relu(first(x))), convolutions for four sizes and Gemms for two."""
        if len(first) == 4:
            inner = self.conv(self.node("Relu", self.conv(x, first)), second)
        else:
            wide = self.node("Gemm", x, self.weight(first, first[1]), transB=1)
            inner = self.node("Gemm", self.node("Relu", wide), self.weight(second, second[1]), transB=1)
        return self.node("Add", x, inner)


def make(path: Path, plan: Plan, seed: int = 0) -> int:
    """Write the model and its data file; the bytes of weights come back."""
    location = f"{path.name}.data"
    k, c, w = plan.kernel, plan.channels, plan.wide
    with path.with_name(location).open("wb") as file:
        maker = _Maker(file, location, np.random.default_rng(seed))
        x = maker.node("Relu", maker.conv("x", (k, 3, 3, 3), stride=2))
        for _ in range(plan.kernels):
            x = maker.block(x, (2 * k, k, 3, 3), (k, 2 * k, 3, 3))
        x = maker.node("AveragePool", maker.conv(x, (c, k, 1, 1)), kernel_shape=[4, 4], strides=[4, 4])
        for _ in range(plan.points):
            x = maker.block(x, (w, c, 1, 1), (c, w, 1, 1))
        x = maker.node("Flatten", maker.node("GlobalAveragePool", x))
        for _ in range(plan.linear):
            x = maker.block(x, (w, c), (c, w))
        maker.node("Gemm", x, maker.weight((10, c), c), transB=1)
        size = file.tell()
    maker.nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        maker.nodes, "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        maker.tensors,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), path)
    return size
