"""What holds of every network, tried on random ones: the same ones in each run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from batude_onnx.errors import BudgetError, NothingToCompressError
from batude_onnx.layers import count
from batude_onnx.pipeline import compress
from batude_onnx.proving import survey
from batude_onnx.records import Given, Wishes
from batude_onnx.rewriting import rewrite
from batude_onnx.validation import compare, require
from tests.importer_graphs import imported
from tests.pipelines import saved, settings_for, stored
from tests.random_networks import Network, networks
from tests.rewritings import chains_of, checked, outputs


def tried(examples: int) -> settings:
    """So many networks, drawn from a fixed seed and kept nowhere; a slow machine is no failure."""
    return settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )


@tried(150)
@given(networks())
def test_the_imported_network_computes_what_onnxruntime_does(network: Network) -> None:
    with torch.no_grad():
        (found,) = imported(network.model)(torch.from_numpy(network.x))
    require(compare(outputs(network.model, x=network.x), {"y": found.numpy()}), "the import")


@tried(100)
@given(networks())
def test_a_rewrite_at_full_rank_changes_nothing(network: Network) -> None:
    model = ir.from_proto(network.model)
    chains = chains_of(model)
    event(f"{len(chains)} layers are replaced")
    written = checked(rewrite(model, chains))
    require(compare(outputs(network.model, x=network.x), outputs(written, x=network.x)), "the rewrite")


@tried(60)
@given(networks(), st.sampled_from(["1.2x", "1.5x", "2x", "70%"]), st.sampled_from(["params", "macs"]), st.booleans())
def test_a_run_without_data_keeps_its_budget_and_its_proofs(network: Network, budget: str, metric: str, simplify: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = settings_for(
            saved(network.model, Path(folder)), Path(folder), f"{metric}={budget}", simplify=simplify, inputs=shapes_of(network)
        )
        try:
            verdict = compress(run)
        except (NothingToCompressError, BudgetError) as refusal:
            event(type(refusal).__name__)
            assert not run.output.exists()
            return
        event("compressed")
        written = onnx.load(run.output)
        seen = survey(ir.from_proto(written), shapes_of(network)).cost
        assert seen == verdict.comparison.cost_other
        assert seen.of(metric) <= verdict.budget.limits[0].limit
        assert seen.params == stored(run.output)
        assert all(difference.within for difference in (*verdict.surgery, *verdict.parity))
        found = outputs(written, x=network.x)["y"]
        assert found.shape == outputs(network.model, x=network.x)["y"].shape
        assert np.isfinite(found).all()


def test_the_random_networks_hold_what_they_should() -> None:
    """Each kind of node and of geometry turns up among the networks that are tried; the twin of all of the above."""
    ops: set[str] = set()
    seen: set[str] = set()

    @tried(60)
    @given(networks())
    def look(network: Network) -> None:
        ops.update(node.op_type for node in network.model.graph.node)
        weights = [node.input[1] for node in network.model.graph.node if node.op_type == "Conv"]
        seen.update({"shared"} if len(set(weights)) < len(weights) else set())
        dims = network.model.graph.input[0].type.tensor_type.shape.dim
        seen.update(dim.dim_param for dim in dims if dim.dim_param)
        for node in network.model.graph.node:
            held = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            pads = held.get("pads", [0, 0])
            seen.update({"asymmetric"} if pads[: len(pads) // 2] != pads[len(pads) // 2 :] else set())
            seen.update(name for name, value in held.items() if name in ("strides", "dilations") and max(value) > 1)
            seen.update({"groups"} if held.get("group", 1) > 1 else set())

    look()
    assert ops >= {"Conv", "ConvTranspose", "BatchNormalization", "Add", "Concat", "Flatten", "Gemm", "Relu", "GlobalAveragePool"}
    assert seen >= {"shared", "N", "H", "W", "asymmetric", "strides", "dilations", "groups"}


def shapes_of(network: Network) -> Wishes:
    """The whole shape of the input, as far as the model leaves it open."""
    first = network.model.graph.input[0].type.tensor_type.shape.dim[0]
    return Wishes({"x": Given((first.dim_value or 1, *network.x.shape[1:]))})


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_the_count_is_not_blind(metric: str) -> None:
    """The twin of the budget's test: a network counts more than what it was compressed to."""
    from tests.small_models import network

    model = ir.from_proto(network())
    before = survey(model).cost
    smaller = rewrite(model, chains_of(model, {"c1": (2, 2), "y": (1,)}))
    assert count(smaller, survey(smaller).shapes).of(metric) < before.of(metric)
