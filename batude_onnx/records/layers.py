"""Layers as they stand in a graph, and the chains that take their places."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from batude_onnx.records.arrays import FloatArray


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
    `twins`: the keys of later nodes that compute the same with the same weight; positions are those of all of them.
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
    twins: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """Of all nodes that are this layer."""
        return (self.key, *self.twins)

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
