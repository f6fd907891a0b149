"""The arithmetic of training."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from batude_onnx.training import precision
from batude_onnx.training.batches import Batches
from batude_onnx.training.loop import Progress, train
from batude_onnx.training.precision import autocast, native_bfloat16
from batude_onnx.training.recipe import RECIPES, Phase
from tests.importer_graphs import floats, imported
from tests.small_models import network


def test_bfloat16_is_used_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert native_bfloat16("cpu")
    with autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False}, raising=False)
    assert not native_bfloat16("cpu")
    with autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not native_bfloat16("cpu")
    assert not native_bfloat16("meta")


@pytest.mark.parametrize("native", [True, False])
def test_a_network_learns_in_either_arithmetic_and_keeps_float32_weights(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(precision, "native_bfloat16", lambda device: native)
    seen: list[Progress] = []
    net, teacher = imported(network(0)), imported(network(1)).requires_grad_(False)
    batches = Batches(floats(256, 3, 8, 8), batch=32)
    train(net, teacher, batches, RECIPES["default"], Phase(0.05), name="n", epochs=6, report=seen.append)
    assert seen[-1].loss < 0.5 * seen[0].loss
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


@pytest.mark.parametrize(("groups", "stride", "dtype"), [(8, 2, torch.float32), (8, 1, torch.bfloat16), (2, 2, torch.bfloat16)])
def test_a_strided_depthwise_convolution_stays_float32(
    monkeypatch: pytest.MonkeyPatch, groups: int, stride: int, dtype: torch.dtype
) -> None:
    """Its gradient in bfloat16 takes oneDNN many times as long; other convolutions are the faster for it."""
    monkeypatch.setattr(precision, "native_bfloat16", lambda device: True)
    x, weight, bias = torch.randn(2, 8, 9, 9), torch.randn(8, 8 // groups, 3, 3, requires_grad=True), torch.randn(8)
    with autocast("cpu"):
        inner = F.relu(F.conv2d(x, torch.eye(8)[:, :, None, None]))
        assert inner.dtype == torch.bfloat16
        found = F.conv2d(inner, weight, bias, (stride, stride), (1, 1), (1, 1), groups)
        assert found.dtype == dtype
    wanted = F.conv2d(x.relu(), weight, bias, stride, 1, 1, groups)
    torch.testing.assert_close(found.float(), wanted, rtol=0.02, atol=0.1)
    (ours,), (plain,) = torch.autograd.grad(found.float().sum(), weight), torch.autograd.grad(wanted.sum(), weight)
    torch.testing.assert_close(ours, plain, rtol=0.02, atol=0.3)
