"""The second moments of what each layer sees, computed inside of the graph that onnxruntime runs.

With X (D, rows) the patches that a kernel sees, D = C/g * kernel, one matrix for each group holds all that a fit needs:

    [X; 1] [X; 1]'  =  [[ X X', sum of X ], [ sum of X', rows ]].

The patches of a convolution are a convolution too: by kernels that each pick one place of one channel, with the layer's own
strides, pads and dilations. Only these matrices leave the runtime, added up over all samples; those in bodies over all their
runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from batude_onnx.calibration.probe import PAD_INPUTS, Probe
from batude_onnx.decomposition import Metric, linalg
from batude_onnx.layers import conv_link
from batude_onnx.records import FloatArray, LayerSpec, Site
from batude_onnx.training.features import POSITIONS, Sums
from batude_onnx.training.statistics import require_numbers

Feeds = Mapping[str, npt.NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]

# Elements of the matrices that are collected in one run of the samples.
ELEMENTS = 2**26


def collect(
    model: ir.Model,
    sites: Sequence[Site],
    weights: Mapping[str, Tensor],
    biases: Mapping[str, Tensor],
    shapes: Shapes,
    samples: Sequence[Feeds],
    provider: str = "cpu",
    threads: int | None = None,
) -> dict[str, Sums]:
    """The sums of each site towards its own outputs, from one pass of `samples` for a few layers each.

    `weights`: canonical, by key; `biases` of those that have one. `shapes`: of values, where known. A site that no sample
    reaches, or whose values cannot be taken out of the graph, is left out.
    """
    found: dict[str, Sums] = {}
    for some in _portions(sites):
        probe, names = Probe(model), {}
        for site in some:
            node = probe.values[site.key].producer()
            data = None if node is None else node.inputs[0]
            if data is None or node is None or not isinstance(node.graph, ir.Graph) or not probe.reachable(node.graph):
                continue
            moment = _moment(probe, node.graph, data, site, shapes)
            size = prod(site.shape[1:]) + 1
            lifted = probe.lift(node.graph, moment, (site.geometry.groups, size, size))
            names[site.key] = probe.give(lifted)[0]
        if not names:
            continue
        session = probe.open(provider, threads)
        totals: dict[str, Any] = dict.fromkeys(names, 0.0)
        for feeds in samples:
            given = session.run(feeds)
            for key, name in names.items():
                totals[key] = totals[key] + given[name].astype(np.float64)
        for site in some:
            if site.key in totals and totals[site.key][0, -1, -1] > 0:
                found[site.key] = _sums(totals[site.key], weights[site.key], biases.get(site.key))
    return found


def metric_of(site: Site, sums: Sums, ridge: float = 1e-3) -> Metric:
    """Inputs are whitened by the moment of their channels; all outputs count alike."""
    groups, into, kernel = site.geometry.groups, site.shape[1], prod(site.kernel)
    moment = torch.as_tensor(sums.xx).reshape(groups, into, kernel, into, kernel)
    require_numbers(site, moment)
    root, inverse = linalg.roots(torch.einsum("gckdk->gcd", moment), ridge)
    same = torch.eye(site.shape[0] // groups, dtype=torch.float64).expand(groups, -1, -1)
    return Metric(same, same, root, inverse)


def _portions(sites: Iterable[Site]) -> Iterator[list[Site]]:
    """Sites whose matrices fit into memory together."""
    some: list[Site] = []
    size = 0
    for site in sites:
        more = site.geometry.groups * (prod(site.shape[1:]) + 1) ** 2
        if some and size + more > ELEMENTS:
            yield some
            some, size = [], 0
        some, size = [*some, site], size + more
    if some:
        yield some


def _sums(matrix: FloatArray, weight: Tensor, bias: Tensor | None) -> Sums:
    """What the matrices say, with Y = W X + b."""
    moments = torch.from_numpy(matrix)
    xx, x, rows = moments[:, :-1, :-1], moments[:, :-1, -1], int(moments[0, -1, -1])
    own = weight.detach().cpu().double().reshape(len(xx), -1, xx.shape[-1])
    added = torch.zeros(own.shape[:2], dtype=torch.float64) if bias is None else bias.double().reshape(own.shape[:2])
    return Sums(xx, xx @ own.mT + x[..., :, None] * added[..., None, :], x, (own @ x[..., None])[..., 0] + rows * added, rows)


def _moment(probe: Probe, graph: ir.Graph, data: ir.Value, site: Site, shapes: Shapes) -> ir.Value:
    """(g, D + 1, D + 1), float32, of one run."""

    def node(op: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        return probe.node(graph, op, inputs, attributes)

    def reshaped(value: ir.Value, *sizes: int) -> ir.Value:
        return node("Reshape", [value, probe.constant(graph, np.array(sizes))])

    groups, depth = site.geometry.groups, prod(site.shape[1:])
    x = node("Cast", [data], to=int(ir.DataType.FLOAT))
    if len(site.shape) == 2:
        rows = node("Transpose", [reshaped(x, 1, -1, depth)], perm=[0, 2, 1])
    else:
        seen = reshaped(_patches(probe, graph, x, site), 0, groups, depth, -1)
        chosen = _chosen(site, shapes)
        if chosen is not None:
            seen = node("Gather", [seen, probe.constant(graph, chosen)], axis=3)
        rows = reshaped(node("Transpose", [seen], perm=[1, 2, 0, 3]), groups, depth, -1)
    pads = [0, 0, 0, 0, 1, 0]
    if probe.opset < PAD_INPUTS:
        rows = node("Pad", [rows], pads=pads, value=1.0)
    else:
        one = probe.constant(graph, np.array(1.0, np.float32))
        rows = node("Pad", [rows, probe.constant(graph, np.array(pads)), one])
    return node("MatMul", [rows, node("Transpose", [rows], perm=[0, 2, 1])])


def _patches(probe: Probe, graph: ir.Graph, x: ir.Value, site: Site) -> ir.Value:
    """(N, C * kernel, *out)."""
    channels, size, kernel = site.channels_in, prod(site.kernel), site.kernel
    geometry = site.geometry
    if size == 1 and set(geometry.strides) == {1} and not any((*geometry.pads, *geometry.output_padding)):
        return x
    pick = np.tile(np.eye(size, dtype=np.float32).reshape(size, 1, *kernel), (channels, *(1,) * (1 + len(kernel))))
    form = conv_link(LayerSpec(pick, None, replace(geometry, groups=channels)))
    return probe.node(graph, form.op, [x, probe.constant(graph, form.weight)], form.attributes)


def _chosen(site: Site, shapes: Shapes) -> npt.NDArray[np.int64] | None:
    """Positions of the output that are used, drawn at random; None: all of them."""
    count = prod(shapes.get(site.key, ())[2:])
    if site.inside or count <= POSITIONS:
        return None
    return np.sort(np.random.default_rng(0).permutation(count)[:POSITIONS])
