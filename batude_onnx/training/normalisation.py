"""BatchNorm put back behind convolutions whose exporter had folded it away, and folded away again.

    y = conv(x);   BN(y) = gamma (y - mu) / sqrt(var + eps) + beta   is the identity for   gamma = sqrt(var + eps), beta = mu

with mu and var measured on data, so that the network's function does not change when it is put in. At the end

    W' = gamma / sqrt(var + eps) W,      b' = gamma / sqrt(var + eps) (b - mu) + beta

gives the function back exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batude_onnx.importer import GraphNet
from batude_onnx.records import Site
from batude_onnx.training.statistics import channels_last_axis


class RestoredBatchNorm(nn.Module):
    """BatchNorm over axis 1 of (N, S, ...), starting as the identity on data of the given mean and variance, each (S,)."""

    mean: Tensor
    var: Tensor

    def __init__(self, mean: Tensor, var: Tensor, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("var", var.clone())
        self.gamma = nn.Parameter((self.var + eps).sqrt())
        self.beta = nn.Parameter(mean.clone())
        self.eps, self.momentum = eps, momentum

    def forward(self, y: Tensor) -> Tensor:
        return F.batch_norm(y, self.mean, self.var, self.gamma, self.beta, self.training, self.momentum, self.eps)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(a, c), each (S,) float64, such that in eval mode BN(y) = a y + c."""
        scale = self.gamma.detach().double() / (self.var.double() + self.eps).sqrt()
        return scale, self.beta.detach().double() - scale * self.mean.double()


def restorable(sites: Sequence[Site]) -> list[Site]:
    """Convolutions with a stored weight and bias of their own, run in one place, that no BatchNormalization follows.

    A BatchNorm that was folded away has left a bias. Folding one into a layer without would add a bias to the file, which no
    budget has counted.
    """
    readers = Counter(site.bias for site in sites)
    return [
        site
        for site in sites
        if site.weight
        and site.bias is not None
        and readers[site.bias] == 1
        and len(site.shape) > 2
        and not site.normalised
        and not site.twins
    ]


def restore(net: GraphNet, sites: Sequence[Site], inputs: Iterable[Tensor]) -> None:
    """Put an identity BatchNorm behind each of `sites`, with statistics measured on `inputs` in eval mode."""
    sums: dict[str, list[Tensor | float]] = {site.key: [0.0, 0.0, 0.0] for site in sites}

    def watch(site: Site) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            rows, held = channels_last_axis(output, site).double(), sums[site.key]
            held[0] = held[0] + rows.sum(0)
            held[1] = held[1] + rows.square().sum(0)
            held[2] = held[2] + float(len(rows))

        return net.step(site.key).register_forward_hook(hook)

    handles = [watch(site) for site in sites if net.has_step(site.key)]
    net.eval()
    with torch.no_grad():
        for x in inputs:
            net(x)
    for handle in handles:
        handle.remove()
    for site in sites:
        total, squares, count = sums[site.key]
        if not isinstance(total, Tensor) or not isinstance(squares, Tensor):
            continue  # no output needs this layer
        mean = total / count
        var = (squares / count - mean.square()).clamp_min(0.0)
        net.wrap(site.key, RestoredBatchNorm(mean.float(), var.float()))


def fold(weight: Tensor, bias: Tensor | None, norm: RestoredBatchNorm) -> tuple[Tensor, Tensor]:
    """The layer that does what `norm` behind (weight (S, ...), bias (S,)) does in eval mode; in the weight's own type."""
    scale, shift = norm.scale_and_shift()
    scaled = weight.double() * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    moved = shift if bias is None else shift + scale * bias.double()
    return scaled.to(weight.dtype), moved.to(weight.dtype)
