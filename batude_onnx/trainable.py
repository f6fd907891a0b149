"""Whether a graph is trained in torch, which of its layers, and why not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from batude_onnx import layers
from batude_onnx.errors import UnsupportedError
from batude_onnx.importer import GraphNet, import_graph
from batude_onnx.opening import Case
from batude_onnx.records import Site
from batude_onnx.settings import Watch

# Nodes that cannot be imported and are named with their reasons.
REASONS = 5


def listed(reasons: Sequence[str], watch: Watch) -> None:
    """Say the first of them, and how many more there are."""
    for reason in reasons[:REASONS]:
        watch.say(reason)
    if len(reasons) > REASONS:
        watch.say(f"  and {len(reasons) - REASONS} more")


def imported(case: Case, trains: bool) -> tuple[GraphNet | None, str]:
    """The graph as a network in torch; None, and the reason, where it cannot be trained or need not be."""
    if (reason := _unfit(case)) is not None:
        return None, reason
    try:
        net = import_graph(case.model, cut=True)
    except UnsupportedError as error:
        return None, str(error)
    within = [site for site in case.seen.compressible if trained(net, site)]
    if not within:
        return None, "no layer that can be compressed is reached by training"
    if not trains and (net.refused or len(within) < len(case.seen.compressible)):
        beyond = len(case.seen.compressible) - len(within)
        return None, net.refused or f"{beyond} layers stand where torch does not reach them"
    return net, ""


def trained(net: GraphNet, site: Site) -> bool:
    """Whether a layer is the steps of the network that it should be: in an unrolled loop its weight is that of more."""
    return net.readers(site.weight) == len(site.keys) and all(map(net.has_step, site.keys))


def _unfit(case: Case) -> str | None:
    """Why torch would not train a model as it is; None where it would."""
    if case.runs:
        specs = case.seen.specs
        return f"the model has {len(specs)} inputs" if len(specs) > 1 else f"input {specs[0]} is not of floating point"
    for spec in case.seen.specs:
        if spec.dtype.kind == "f" and spec.dtype != np.float32:
            return f"input {spec} is not float32, which training needs"
    nodes = layers.nodes_by_key(case.model)
    for site in case.seen.compressible:
        stored, read = layers.weight_type(nodes[site.key])
        if {stored, read} != {ir.DataType.FLOAT}:
            held = f"stored as {stored.name}" if stored != ir.DataType.FLOAT else f"read as {read.name}"
            return f"weight {site.weight} is {held}, and training needs FLOAT"
    return None
