"""Moments of inputs and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from batude_onnx.decomposition import Metric
from batude_onnx.training.statistics import collect_metrics, sampled_loss
from tests.importer_graphs import imported
from tests.loading_models import model_of
from tests.small_models import a_layer_without_gradient, floats, sites_of


def test_moments_by_a_plain_double_loop() -> None:
    """A and G of one 3x3 layer in two groups, position by position and sample by sample, from autograd of each sample's loss."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], group=2, strides=[2, 2]),
        helper.make_node("Tanh", ["c"], ["t"]),
        helper.make_node("Flatten", ["t"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "d"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 5, 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    held = {"w": floats(6, 2, 3, 3), "b": floats(6), "v": floats(24, 3), "d": floats(3)}
    model = model_of(nodes, [x], [y], held)
    net, sites = imported(model), sites_of(model)
    inputs = [torch.from_numpy(floats(n, 4, 5, 5, seed=n)) for n in (6, 3)]
    ridge = 1e-3
    found = collect_metrics(net, sites, inputs, seed=5, ridge=ridge)

    weight, bias, v, d = (torch.from_numpy(held[name]) for name in ("w", "b", "v", "d"))
    a, g = torch.zeros(2, 2, 2, dtype=torch.float64), torch.zeros(2, 3, 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    for batch in inputs:
        drawn = torch.multinomial((net(batch)[0].detach() / 4).softmax(1), 1, generator=generator)
        for sample, label in zip(batch, drawn, strict=True):
            out = nn.functional.conv2d(sample[None], weight, bias, stride=2, groups=2).requires_grad_()
            logits = out.tanh().flatten(1) @ v + d
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits / 4, label), out)
            for group in range(2):
                for row in range(5):
                    for column in range(5):
                        one = sample[2 * group : 2 * group + 2, row, column].double()
                        a[group] += torch.outer(one, one)
                for row in range(2):
                    for column in range(2):
                        one = gradient[0, 3 * group : 3 * group + 3, row, column].double()
                        g[group] += torch.outer(one, one)
    wanted = Metric.of_moments(a, g, ridge)
    assert set(found) == {"c", "y"}
    for name in ("output_root", "input_root", "output_inverse", "input_inverse"):
        torch.testing.assert_close(getattr(found["c"], name), getattr(wanted, name), rtol=1e-4, atol=1e-5)
    # Each root really is one: squared it is the moment with its ridge.
    damped = a + ridge * a.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None] * torch.eye(2)
    torch.testing.assert_close(found["c"].input_root @ found["c"].input_root, damped, rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not torch.allclose(collect_metrics(net, sites, inputs, seed=6)["c"].output_root, wanted.output_root, rtol=1e-3)


def test_the_metric_of_a_layer_that_the_loss_does_not_reach_is_left_out() -> None:
    model = a_layer_without_gradient()
    found = collect_metrics(imported(model), sites_of(model), [torch.from_numpy(floats(2, 4, 5, 5))])
    assert set(found) == {"y"}


def test_labels_are_drawn_from_the_softened_prediction() -> None:
    logits = torch.tensor([[0.0, 4 * math.log(3.0)]]).repeat(20_000, 1)
    loss = float(sampled_loss([logits], torch.Generator().manual_seed(0))) / 20_000
    entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    # Three standard errors of 20,000 draws.
    assert loss == pytest.approx(entropy, abs=0.011)
