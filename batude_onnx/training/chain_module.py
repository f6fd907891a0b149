"""A factor chain as a torch module, trained in the place of the layer that it replaces."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batude_onnx.decomposition import method
from batude_onnx.importer import GraphNet
from batude_onnx.records import FactorChain, Geometry, Layout, Site
from batude_onnx.training.statistics import canonical

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _same_pads(x: Tensor, kernel: tuple[int, ...], geometry: Geometry) -> tuple[int, ...]:
    """ONNX's SAME_UPPER and SAME_LOWER: output size = ceil(input / stride), the odd one after or before."""
    begins, ends = [], []
    for size, k, stride, dilation in zip(x.shape[2:], kernel, geometry.strides, geometry.dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        begins.append(small if geometry.auto_pad == "SAME_UPPER" else large)
        ends.append(large if geometry.auto_pad == "SAME_UPPER" else small)
    return (*begins, *ends)


def _cut(kernel: tuple[int, ...], geometry: Geometry) -> tuple[int, ...]:
    """What SAME_UPPER and SAME_LOWER cut off of a transposed convolution, so that output size = stride * input size."""
    begins, ends = [], []
    for k, stride, dilation, more in zip(kernel, geometry.strides, geometry.dilations, geometry.output_padding, strict=True):
        total = max(0, more + (k - 1) * dilation + 1 - stride)
        small, large = total // 2, total - total // 2
        begins.append(small if geometry.auto_pad == "SAME_UPPER" else large)
        ends.append(large if geometry.auto_pad == "SAME_UPPER" else small)
    return (*begins, *ends)


def _run_transposed(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Computed whole, then cut, as torch cuts both sides alike. The bias comes last: it belongs to all positions."""
    dimensions = weight.ndim - 2
    stored = Layout(swapped=True, groups=geometry.groups).stored(weight)
    pads = geometry.pads
    if geometry.auto_pad == "VALID":
        pads = (0,) * (2 * dimensions)
    elif geometry.auto_pad != "NOTSET":
        pads = _cut(tuple(weight.shape[2:]), geometry)
    run = _TRANSPOSED[dimensions]
    y = run(x, stored, None, geometry.strides, 0, geometry.output_padding, geometry.groups, geometry.dilations)
    y = F.pad(y, [-pad for pair in zip(reversed(pads[:dimensions]), reversed(pads[dimensions:]), strict=True) for pad in pair])
    return y if bias is None else y + bias.reshape(-1, *(1,) * dimensions)


def run_layer(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """One layer of a chain on `x`: (N, C, ...) for a convolution, (..., C) for a linear layer."""
    dimensions = weight.ndim - 2
    if dimensions == 0:
        return F.linear(x, weight, bias)
    if geometry.transposed:
        return _run_transposed(x, weight, bias, geometry)
    pads = geometry.pads
    if geometry.auto_pad == "VALID":
        pads = (0,) * (2 * dimensions)
    elif geometry.auto_pad != "NOTSET":
        pads = _same_pads(x, tuple(weight.shape[2:]), geometry)
    begins, ends = pads[:dimensions], pads[dimensions:]
    if begins != ends:
        x = F.pad(x, [pad for pair in zip(reversed(begins), reversed(ends), strict=True) for pad in pair])
        begins = (0,) * dimensions
    return _CONVOLUTIONS[dimensions](x, weight, bias, geometry.strides, begins, geometry.dilations, geometry.groups)


class ChainModule(nn.Module):
    """Runs the layers of `chain` one after the other; all their weights and biases are parameters."""

    def __init__(self, chain: FactorChain) -> None:
        super().__init__()
        self.chain = chain
        self.weights = nn.ParameterList(torch.from_numpy(layer.weight.copy()) for layer in chain.layers)
        self.biases = nn.ParameterDict(
            {str(k): torch.from_numpy(layer.bias.copy()) for k, layer in enumerate(chain.layers) if layer.bias is not None}
        )

    def _bias(self, number: int) -> Tensor | None:
        bias: Tensor | None = self.biases.get(str(number))
        return bias

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.chain.layers):
            x = run_layer(x, self.weights[number], self._bias(number), layer.geometry)
        return x

    def trained(self) -> FactorChain:
        """The chain with the values that the parameters have now."""
        layers = []
        for number, layer in enumerate(self.chain.layers):
            bias = self._bias(number)
            layers.append(
                replace(
                    layer,
                    weight=self.weights[number].detach().cpu().contiguous().numpy().copy(),
                    bias=None if bias is None else bias.detach().cpu().numpy().copy(),
                )
            )
        return replace(self.chain, layers=tuple(layers))


def put(net: GraphNet, site: Site, chain: ChainModule) -> None:
    """`chain` in the place of a layer, wherever that is run."""
    for key in site.keys:
        net.replace(key, chain)


def dense(net: GraphNet, site: Site) -> tuple[Tensor, Tensor | None]:
    """What a layer of `net` computes, detached: its canonical weight and its bias, or those that the chain in its place makes."""
    op = net.operation(site.key)
    if not isinstance(op, ChainModule):
        return canonical(site, net.weight(site.weight).detach()), None if site.bias is None else net.weight(site.bias).detach()
    chain, device = op.trained(), op.weights[0].device
    bias = chain.layers[-1].bias
    return method(chain.method).reconstruct(chain).float().to(device), None if bias is None else torch.from_numpy(bias).to(device)
