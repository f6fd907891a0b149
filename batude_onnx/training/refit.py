"""Factors fitted in closed form, so that the decomposed network's features reproduce the dense one's.

Layers are taken in the order of the graph. For each, with X and Y as `features` gives them (centred where the layer has a bias),

    B = (X'X + r I)^-1 (X'Y + r W')       least squares, drawn a little towards the layer's own weight W,

and the chain is the one nearest to B in the metric of X'X + r I and of the outputs (`regress` of the layer's method): the best
that its ranks allow for what the layer really sees. Its bias is mean(Y) - W' mean(X). Later layers thus see, and correct, the
errors that earlier ones have made. A bias is fitted only where the layer has one, since it would count against the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from batude_onnx.decomposition import Metric, method, method_of
from batude_onnx.importer import GraphNet
from batude_onnx.records import FactorChain, Site
from batude_onnx.training.chain_module import ChainModule, dense, put
from batude_onnx.training.features import Sums, collect

RIDGE = 1e-3


class Regression:
    """One layer's least squares, solved once for any ranks. `weight` is its own, canonical."""

    def __init__(self, site: Site, sums: Sums, weight: Tensor, metric: Metric | None, ridge: float = RIDGE) -> None:
        xx, xy = torch.as_tensor(sums.xx), torch.as_tensor(sums.xy)
        self.site, self.metric = site, metric
        self.mean_x, self.mean_y = torch.as_tensor(sums.x) / sums.rows, torch.as_tensor(sums.y) / sums.rows
        self.biased = site.bias is not None
        xx, xy = xx / sums.rows, xy / sums.rows
        if self.biased:
            xx = xx - self.mean_x[..., :, None] * self.mean_x[..., None, :]
            xy = xy - self.mean_x[..., :, None] * self.mean_y[..., None, :]
        # Where nothing but zeros comes in, any positive number will do: the layer keeps its weight.
        mean_square = xx.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)[:, None, None]
        own = weight.detach().cpu().double().reshape(len(xx), -1, xx.shape[-1])
        self.gram = xx + ridge * mean_square * torch.eye(xx.shape[-1], dtype=xx.dtype)
        self.best = torch.linalg.solve(self.gram, xy + ridge * mean_square * own.mT).mT  # (g, S/g, D)

    def chain(self, ranks: tuple[int, ...]) -> FactorChain:
        """The best chain of these ranks, with its bias."""
        weight, bias = self.best.reshape(self.site.shape), self._bias(self.best) if self.biased else None
        found = method_of(self.site).regress(weight, self.gram, bias, self.site.geometry, ranks, self.metric)
        if not self.biased:
            return found
        whole = method(found.method).reconstruct(found).reshape(self.best.shape)
        *first, last = found.layers
        return replace(found, layers=(*first, replace(last, bias=self._bias(whole).numpy())))

    def _bias(self, weight: Tensor) -> Tensor:
        """What brings the mean of the outputs of `weight` (g, S/g, D) to what is wanted; float32 (S,)."""
        return (self.mean_y - (weight @ self.mean_x[..., None])[..., 0]).reshape(-1).float()


def refit(
    net: GraphNet,
    reference: GraphNet,
    sites: Sequence[Site],
    inputs: Sequence[Tensor],
    metrics: Mapping[str, Metric],
    report: Callable[[int, int], None],
) -> None:
    """Re-fit every chain in `net`, in the order of `sites`, which is the graph's, to the same network before it was decomposed.

    Both networks run once: a pass stops in front of each layer, and goes on with the layer as it has been fitted.
    `report(done, all)` is called after each.
    """
    net.eval()
    reference.eval()
    with torch.no_grad():
        running, original = [net.begin(x) for x in inputs], [reference.begin(x) for x in inputs]
        for number, site in enumerate(sites, 1):
            module = net.operation(site.key)
            assert isinstance(module, ChainModule)
            own, _ = dense(reference, site)
            regression = Regression(site, collect(site, running, original), own, metrics.get(site.key))
            fitted = ChainModule(regression.chain(module.chain.ranks)).to(own.device)
            put(net, site, fitted)
            report(number, len(sites))
