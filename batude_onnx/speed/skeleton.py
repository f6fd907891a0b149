"""A network with some of its layers replaced by chains of the right shapes and no meaning: time does not depend on weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from batude_onnx import layers
from batude_onnx.decomposition import method_of
from batude_onnx.records import FactorChain, LayerSpec, Site
from batude_onnx.rewriting import rewrite

Ranks = tuple[int, ...]


def skeleton(model: ir.Model, chosen: Mapping[str, tuple[Site, Ranks]]) -> ir.Model:
    """`model` with each chosen layer, by its key, as a chain of these ranks of its site's method."""
    nodes = layers.nodes_by_key(model)
    return rewrite(model, {key: _chain(site, ranks, nodes[key]) for key, (site, ranks) in chosen.items()}) if chosen else model


def _chain(site: Site, ranks: Ranks, node: ir.Node) -> FactorChain:
    outline = method_of(site).outline(site.shape, site.geometry, ranks)
    specs = [LayerSpec(np.zeros(shape, np.float32), None, geometry) for shape, geometry in outline]
    bias = layers.read_bias(node)
    specs[-1] = LayerSpec(specs[-1].weight, bias, specs[-1].geometry)
    return FactorChain(str(site.method), tuple(specs), ranks)
