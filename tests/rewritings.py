"""Every layer of a model replaced by its chain, and what then has to hold."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
import torch

from batude_onnx import decomposition
from batude_onnx.layers import find_sites, infer_shapes, nodes_by_key, read_bias, read_weight
from batude_onnx.records import FactorChain, FloatArray
from batude_onnx.validation import open_session


def chains_of(model: ir.Model, ranks: dict[str, tuple[int, ...]] | None = None) -> dict[str, FactorChain]:
    """Every layer's chain: at full rank, or at the ranks given for some of them."""
    nodes, chains = nodes_by_key(model), {}
    for site in map(decomposition.assign, find_sites(model, infer_shapes(model))):
        if site.reason is not None or (ranks is not None and site.key not in ranks):
            continue
        method, bias = decomposition.method_of(site), read_bias(nodes[site.key])
        chains[site.key] = method.factor(
            torch.from_numpy(read_weight(nodes[site.key]).copy()),
            None if bias is None else torch.from_numpy(bias.copy()),
            site.geometry,
            method.max_ranks(site.shape, site.geometry.groups) if ranks is None else ranks[site.key],
            None,
        )
    return chains


def checked(model: ir.Model) -> onnx.ModelProto:
    """The model as it would be written, accepted by the strict ONNX checker."""
    proto: onnx.ModelProto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def outputs(proto: onnx.ModelProto, **feeds: Any) -> dict[str, FloatArray]:
    return open_session(proto.SerializeToString(), threads=1).run(feeds)


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


# One element is a sum of at most 4*27 products of order 0.3: float32 rounding of a three-layer chain stays below 2e-6 of it.
ATOL, RTOL = 1e-5, 1e-5


def by_name(items: Any) -> dict[str, Any]:
    return {item.name: item for item in items}
