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
# Elements of patches that are in memory at a time. The samples among them share their positions.
ELEMENTS = 2**24


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


def patches(x: Tensor, site: Site, positions: Tensor | None = None) -> Tensor:
    """What the kernel of `site` sees of the input `x`: (g, rows, D), D = C/g * kernel, in the order of the flattened weight.

    Rows are samples, and within each of them the places to which the kernel is applied: those at the indices `positions` of the
    output's flattened map, all of them where there are none.
    """
    if len(site.shape) == 2:
        return x.reshape(1, -1, x.shape[-1])
    places = _places(x, site)
    places = places if positions is None else places[positions]
    # Place 0 is the padding around the map.
    padded = torch.cat([x.new_zeros(*x.shape[:2], 1), x.flatten(2)], dim=2)
    seen = padded[:, :, places.flatten()].reshape(len(x), site.geometry.groups, site.shape[1], *places.shape)
    return seen.permute(1, 0, 3, 2, 4).reshape(site.geometry.groups, len(x) * len(places), -1)


def _places(x: Tensor, site: Site) -> Tensor:
    """For each position of the output's flattened map, the places of `x`'s flattened map under the kernel, counted from 1; 0 for
    padding: (positions, kernel).

    The layer itself says so, run on a map that holds the numbers of its places.
    """
    size, spatial = prod(site.kernel), x.shape[2:]
    pick = torch.eye(size, dtype=torch.float64).reshape(size, 1, *site.kernel)
    numbers = torch.arange(1, prod(spatial) + 1, dtype=torch.float64).reshape(1, 1, *spatial)
    found = run_layer(numbers, pick, None, replace(site.geometry, groups=1))
    return found.flatten(2)[0].T.round().long().to(x.device)


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


def add_rows(sums: Sums, site: Site, given: Tensor, wanted: Tensor, generator: torch.Generator) -> None:
    """Add what the layer sees of its input `given` and what it should then give, `wanted`, to the `sums`."""
    groups = site.geometry.groups
    rows = channels_last_axis(wanted, site)
    outputs = rows.reshape(rows.shape[0], groups, -1).movedim(1, 0)
    # Layers that act on (..., C) mix no samples and no positions: their rows are what is sliced.
    pieces = given.reshape(-1, given.shape[-1]) if len(site.shape) == 2 else given
    each = outputs.shape[1] // len(pieces)
    used = min(each, POSITIONS)
    slices = max(1, ELEMENTS // (used * prod(site.shape[1:]) * groups))
    for start in range(0, len(pieces), slices):
        some = pieces[start : start + slices]
        aimed = outputs[:, start * each : (start + len(some)) * each]
        positions = None
        if each > used:
            positions = torch.randperm(each, generator=generator)[:used].to(given.device)
            aimed = aimed.reshape(groups, len(some), each, -1)[:, :, positions].flatten(1, 2)
        sums.add(patches(some, site, positions), aimed)


def collect(site: Site, running: Sequence[Pass], original: Sequence[Pass] | None = None, seed: int = 0) -> Sums:
    """The sums for `site` as the network runs it, towards what the `original` gives (None: itself), both in eval mode.

    Each pass goes as far as the layer, and no farther.
    """
    generator = torch.Generator().manual_seed(seed)
    sums = Sums()
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
        add_rows(sums, site, given, wanted, generator)
    return sums
