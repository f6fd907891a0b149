"""What a layer sees and what it should give, over unlabelled samples: the sums behind a least-squares fit of its weight.

X (rows, D) are the patches that the layer's kernel sees *in the network that is being compressed*, Y (rows, S) the outputs
that it has *in the original*. Where the layer's output goes into an Add alone, what counts is the sum behind it, and the layer
is asked to make up for what the other side has lost already:

    Y = y + (z_original - z) / a      y, z: the layer's output and the sum in the compressed network,
                                      a: the scale of a BatchNorm between the two, else 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from batude_onnx.importer import GraphNet, Pass
from batude_onnx.records import Site
from batude_onnx.training.chain_module import run_layer
from batude_onnx.training.normalisation import RestoredBatchNorm
from batude_onnx.training.statistics import channels_last_axis

# Neighbouring positions of a map say much the same: so many of each sample are used at most, drawn at random.
POSITIONS = 256
# Elements of patches that are in memory at a time.
ELEMENTS = 2**26


class _Reached(Exception):
    """Stops a forward pass at the layer whose values are wanted."""


@dataclass
class Sums:
    """Running sums of the regression, float64, one for each group: X'X (g, D, D), X'Y (g, D, S/g), and of the columns."""

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


def _values(running: Pass, site: Site, join: str | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input and output of a layer, and the sum that it goes into; steps behind these are not run."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(key: str, last: bool) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            found[key] = given[0], output
            if last:
                raise _Reached

        return running.net.step(key).register_forward_hook(hook)

    handles = [watch(site.key, join is None)]
    if join is not None:
        handles.append(watch(join, True))
    try:
        running.fork().finish()
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return (*found[site.key], None if join is None else found[join][1])


def patches(x: Tensor, site: Site) -> Tensor:
    """What the kernel of `site` sees of the input `x`: (g, rows, D), D = C/g * kernel, in the order of the flattened weight."""
    if len(site.shape) == 2:
        return x.reshape(1, -1, x.shape[-1])
    size, channels = prod(site.kernel), x.shape[1]
    pick = torch.eye(size, device=x.device, dtype=x.dtype).reshape(size, 1, *site.kernel)
    pick = pick.repeat(channels, *(1,) * (len(site.shape) - 1))
    seen = run_layer(x, pick, None, replace(site.geometry, groups=channels))
    rows = seen.movedim(1, -1).reshape(-1, site.geometry.groups, site.shape[1] * size)
    return rows.movedim(1, 0)


def _targets(net: GraphNet, site: Site, ours: Tensor, sum_ours: Tensor, sum_wanted: Tensor) -> Tensor | None:
    """Y of a layer in front of an Add; None where the sum does not have the layer's own shape."""
    if sum_ours.shape != ours.shape:
        return None
    norm = net.after(site.key)
    if not isinstance(norm, RestoredBatchNorm):
        return ours + (sum_wanted - sum_ours)
    scale = norm.scale_and_shift()[0].float()
    # A channel that the BatchNorm has all but switched off cannot make up for anything.
    inverse = torch.where(scale.abs() > 1e-3 * scale.abs().max(), 1 / scale, torch.zeros_like(scale))
    return ours + (sum_wanted - sum_ours) * inverse.reshape(-1, *(1,) * (ours.ndim - 2))


def collect(site: Site, running: Sequence[Pass], original: Sequence[Pass] | None = None, seed: int = 0) -> Sums:
    """The sums for `site` as the network runs it, towards what the `original` gives (None: itself), both in eval mode.

    Each pass goes as far as the layer, and no farther.
    """
    generator = torch.Generator().manual_seed(seed)
    sums, groups = Sums(), site.geometry.groups
    for ours, theirs in zip(running, running if original is None else original, strict=True):
        ours.advance(site.key)
        join = site.joined if site.joined is not None and ours.net.has_step(site.joined) else None
        given, output, together = _values(ours, site, join)
        wanted, sum_wanted = output, together
        if theirs is not ours:
            theirs.advance(site.key)
            _, wanted, sum_wanted = _values(theirs, site, join)
        if together is not None and sum_wanted is not None:
            made_up = _targets(ours.net, site, output, together, sum_wanted)
            wanted = wanted if made_up is None else made_up
        rows = channels_last_axis(wanted, site)
        outputs = rows.reshape(rows.shape[0], groups, -1).movedim(1, 0)
        # Layers that act on (..., C) mix no samples and no positions: their rows are what is sliced.
        pieces = given.reshape(-1, given.shape[-1]) if len(site.shape) == 2 else given
        each = outputs.shape[1] // len(pieces)
        slices = max(1, ELEMENTS // (each * prod(site.shape[1:]) * groups))
        for start in range(0, len(pieces), slices):
            seen = patches(pieces[start : start + slices], site)
            aimed = outputs[:, start * each : start * each + seen.shape[1]]
            if each > POSITIONS:
                chosen = torch.randperm(seen.shape[1], generator=generator)[: seen.shape[1] * POSITIONS // each].to(seen.device)
                seen, aimed = seen[:, chosen], aimed[:, chosen]
            sums.add(seen, aimed)
    return sums
