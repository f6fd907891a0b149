"""A factor chain as a torch module against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from batude_onnx.decomposition import method_of
from batude_onnx.records import FactorChain, Geometry, LayerSpec
from batude_onnx.training.chain_module import ChainModule
from tests.small_models import conv_model, floats, output, rewritten, sites_of


@pytest.mark.parametrize(
    ("shape", "size", "attributes"),
    [
        ((6, 5, 3, 3), (7, 8), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((6, 5, 2, 3), (7, 8), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
        ((6, 5, 2, 2), (7, 8), {"auto_pad": "SAME_UPPER"}),
        ((6, 5, 3, 3), (7, 8), {"auto_pad": "VALID", "strides": [2, 1]}),
        ((6, 5, 3, 3), (7, 8), {"pads": [0, 2, 1, 0], "strides": [2, 2]}),
        ((6, 5, 3, 3), (7, 8), {"pads": [2, 1, 2, 1], "dilations": [2, 1]}),
        ((8, 3, 3, 3), (7, 8), {"group": 2, "pads": [1, 0, 0, 1]}),
        ((7, 6, 4), (11,), {"pads": [3, 1], "strides": [2]}),
        ((6, 4, 2, 3, 2), (4, 5, 4), {"pads": [1, 0, 0, 0, 2, 1], "strides": [1, 2, 1]}),
        ((6, 4, 2, 3, 2), (4, 5, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2, 3]}),
        ((9, 5, 1, 1), (7, 8), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ],
)
def test_a_chain_computes_what_onnxruntime_computes(
    shape: tuple[int, ...], size: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    weight, bias = floats(*shape), floats(shape[0], seed=1)
    model = conv_model(weight, bias, size, **attributes)
    found = sites_of(model)[0]
    way, groups = method_of(found), found.geometry.groups
    ranks = tuple((rank + 1) // 2 for rank in way.max_ranks(shape, groups))
    chain = way.factor(torch.from_numpy(weight), torch.from_numpy(bias), found.geometry, ranks, None)
    x = floats(2, shape[1] * groups, *size, seed=2)
    module = ChainModule(chain)
    with torch.no_grad():
        wanted = output(rewritten(model, {"y": chain}), x)
        np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), wanted, rtol=1e-5, atol=2e-5)
        # And the layer by itself, as it was.
        dense = ChainModule(FactorChain("one layer", (LayerSpec(weight, bias, found.geometry),)))
        np.testing.assert_allclose(dense(torch.from_numpy(x)).numpy(), output(model, x), rtol=1e-5, atol=2e-5)
        for parameter in module.parameters():
            parameter.mul_(1.1)
        moved = output(rewritten(model, {"y": module.trained()}), x)
        np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), moved, rtol=1e-5, atol=5e-5)
        assert np.abs(moved - wanted).max() > 0.1


def test_a_linear_chain_takes_any_leading_axes() -> None:
    first = LayerSpec(floats(3, 6), None, Geometry.pointwise(0))
    last = LayerSpec(floats(4, 3), floats(4), Geometry.pointwise(0))
    x = torch.from_numpy(floats(2, 5, 6))
    with torch.no_grad():
        y = ChainModule(FactorChain("svd", (first, last)))(x)
    np.testing.assert_allclose(y.numpy(), x.numpy() @ (last.weight @ first.weight).T + floats(4), rtol=1e-5, atol=1e-5)
