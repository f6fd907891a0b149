"""Factors re-fitted in closed form, so that the decomposed network's features reproduce the dense one's.

Layers are taken in the order of the graph. For each, the chain's first factors stay; its last two layers are together a linear
map from the patches X (rows, D) of what they receive *in the already compressed network* to the dense layer's outputs
Y (rows, S). The best such map with a bias is least squares,

    B = (X'X)^-1 X'Y      (X, Y centred),

and the best of rank R in the metric G is its truncation to the leading R eigenvectors V of G^1/2 B' X'X B G^1/2
(reduced-rank regression: Izenman, J. Multivariate Anal. 5, 1975):

    second last layer (B G^1/2 V)',      last layer G^-1/2 V,      bias  mean(Y) - B_R' mean(X).

Later layers thus see, and correct, the errors that earlier ones have made.

A bias is fitted only where the layer has one, since it would count against the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from batude_onnx.decomposition import Metric
from batude_onnx.importer import GraphNet
from batude_onnx.records import FactorChain, LayerSpec, Site
from batude_onnx.training.chain_module import ChainModule, run_layer
from batude_onnx.training.statistics import channels_last_axis


class _Reached(Exception):
    """Stops a forward pass at the layer whose values are wanted."""


def _at(net: GraphNet, key: str, x: Tensor, wanted: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`wanted(input, output)` of one step for network input `x`; the steps behind it are not run."""
    found: list[Tensor] = []

    def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(wanted(given[0], output))
        raise _Reached

    handle = net.step(key).register_forward_hook(hook)
    try:
        net(x)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]


def _patches(x: Tensor, layer: LayerSpec) -> Tensor:
    """What the kernel of `layer` sees: (groups, rows, D), D = C/g * kernel, in the order of the flattened weight."""
    weight = torch.from_numpy(layer.weight)
    groups, geometry = layer.geometry.groups, layer.geometry
    if weight.ndim == 2:
        return x.reshape(1, -1, x.shape[-1])
    size = int(np.prod(weight.shape[2:]))
    pick = (
        torch.eye(size, device=x.device, dtype=x.dtype)
        .reshape(size, 1, *weight.shape[2:])
        .repeat(x.shape[1], *(1,) * (weight.ndim - 1))
    )
    seen = run_layer(x, pick, None, replace(geometry, groups=x.shape[1]))
    rows = seen.movedim(1, -1).reshape(-1, groups, weight.shape[1] * size)
    return rows.movedim(1, 0)


@dataclass
class _Sums:
    """Running sums of the regression, float64, one for each group."""

    xx: Tensor | float = 0.0
    xy: Tensor | float = 0.0
    x: Tensor | float = 0.0
    y: Tensor | float = 0.0
    rows: int = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """`x` (g, rows, D), `y` (g, rows, S/g)."""
        self.xx = self.xx + (x.mT @ x).double().cpu()
        self.xy = self.xy + (x.mT @ y).double().cpu()
        self.x = self.x + x.double().sum(1).cpu()
        self.y = self.y + y.double().sum(1).cpu()
        self.rows += x.shape[1]


@dataclass(frozen=True)
class _Fit:
    """The two layers (g, R, D) and (g, S/g, R), and their bias (g, S/g)."""

    inner: Tensor
    outer: Tensor
    bias: Tensor


def _solve(sums: _Sums, rank: int, metric: Metric | None, *, biased: bool, ridge: float) -> _Fit:
    xx, xy, x, y = (torch.as_tensor(part) for part in (sums.xx, sums.xy, sums.x, sums.y))
    mean_x, mean_y = x / sums.rows, y / sums.rows
    if biased:
        xx = xx - sums.rows * mean_x[..., :, None] * mean_x[..., None, :]
        xy = xy - sums.rows * mean_x[..., :, None] * mean_y[..., None, :]
    # Where nothing but zeros comes in, any positive number will do.
    mean_square = xx.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(xx.dtype).tiny)
    xx = xx + ridge * mean_square[:, None, None] * torch.eye(xx.shape[-1], dtype=xx.dtype)
    b = torch.linalg.solve(xx, xy)
    identity = torch.eye(xy.shape[-1], dtype=xx.dtype).expand(len(xx), -1, -1)
    root = identity if metric is None else metric.output_root
    inverse = identity if metric is None else metric.output_inverse
    weighed = b @ root
    _, vectors = torch.linalg.eigh(weighed.mT @ xx @ weighed)
    v = vectors[..., -rank:]
    inner, outer = (weighed @ v).mT, inverse @ v
    return _Fit(inner, outer, mean_y - ((outer @ inner) @ mean_x[..., None])[..., 0])


def _balanced(inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with equal Frobenius norms."""
    a, b = float(inner.norm()), float(outer.norm())
    scale = (b / a) ** 0.5 if a and b else 1.0
    return inner * scale, outer / scale


def refit_layer(
    net: GraphNet, dense: GraphNet, site: Site, inputs: Sequence[Tensor], metric: Metric | None, ridge: float = 1e-4
) -> None:
    """Re-fit the last two layers and the bias of the chain that `net` runs at `site` to `dense` on `inputs`."""
    module = net.operation(site.key)
    assert isinstance(module, ChainModule)
    chain = module.trained()
    *first, inner, outer = chain.layers
    biased = site.bias is not None
    sums = _Sums()

    def received(x: Tensor, _: Tensor) -> Tensor:
        for layer in first:
            x = run_layer(x, torch.from_numpy(layer.weight).to(x), None, layer.geometry)
        return _patches(x, inner)

    for x in inputs:
        seen = _at(net, site.key, x, received)
        wanted = channels_last_axis(_at(dense, site.key, x, lambda _, out: out), site)
        grouped = wanted.reshape(wanted.shape[0], site.geometry.groups, -1).movedim(1, 0)
        sums.add(seen, grouped)
    fit = _solve(sums, outer.weight.shape[1], metric, biased=biased, ridge=ridge)
    a, b = _balanced(fit.inner, fit.outer)
    bias = fit.bias.reshape(-1).float().numpy() if biased else None
    fitted = (
        replace(inner, weight=a.reshape(inner.weight.shape).float().numpy()),
        LayerSpec(b.reshape(outer.weight.shape).float().numpy(), bias, outer.geometry),
    )
    device = next(module.parameters()).device
    net.replace(site.key, ChainModule(FactorChain(chain.method, (*first, *fitted))).to(device))


def refit(
    net: GraphNet,
    dense: GraphNet,
    sites: Sequence[Site],
    inputs: Sequence[Tensor],
    metrics: Mapping[str, Metric],
    report: Callable[[int, int], None],
) -> None:
    """Re-fit every chain in `net`, in the order of `sites`, to the same network before it was decomposed.

    `report(done, all)` is called after each.
    """
    net.eval()
    dense.eval()
    with torch.no_grad():
        for number, site in enumerate(sites, 1):
            refit_layer(net, dense, site, inputs, metrics.get(site.key))
            report(number, len(sites))
