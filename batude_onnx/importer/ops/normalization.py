"""Batch, layer, RMS, instance and group normalisation, LRN, LpNormalization, MeanVarianceNormalization."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView, Refusal


class BatchNormalization(nn.Module):
    """y = scale (x - mean) / sqrt(var + eps) + bias over axis 1.

    While training, mean and variance are the batch's, and the running ones, which are buffers, move towards them by 0.1.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        # An exporter may have stored a bias and a mean that were equal as one tensor; what is learned is no statistic.
        if mean.requires_grad or var.requires_grad:
            mean, var = mean.detach().clone(), var.detach().clone()
        # Half-precision networks may keep their statistics in single precision; torch wants all four to be of one type.
        scale, bias = scale.to(mean.dtype), bias.to(mean.dtype)
        return F.batch_norm(x, mean, var, scale, bias, self.training, 0.1, self.eps)


@op("BatchNormalization", 7, 9, 14, 15, learned=(1, 2))
def batch_normalization(node: NodeView) -> Op:
    """x (N, C, *), the others (C,)."""
    if node.attr_int("training_mode", 0):
        raise node.refuse("training_mode", 1, "export the network in evaluation mode")
    if node.given("spatial") and not node.attr_int("spatial"):
        raise node.refuse("spatial", 0, "use spatial = 1")
    for index in range(1, node.outputs):
        if node.used(index):
            raise Refusal(f"its output {index} (a training statistic) is used", "export the network in evaluation mode")
    return BatchNormalization(node.attr_float("epsilon", 1e-5))


@op("LayerNormalization", 17, learned=(1, 2))
def layer_normalization(node: NodeView) -> Op:
    """Over all axes from `axis` on; scale and bias broadcast against those. Its statistics are of `stash_type`."""
    axis, eps = node.attr_int("axis", -1), node.attr_float("epsilon", 1e-5)
    if node.used(1) or node.used(2):
        return _layer_statistics(axis, eps, node.torch_type("stash_type"))

    def run(x: Tensor, scale: Tensor | None, bias: Tensor | None = None) -> Tensor:
        shape = x.shape[axis:]
        if scale is not None and scale.shape == shape and (bias is None or bias.shape == shape):
            return F.layer_norm(x, shape, scale, bias, eps)
        y = F.layer_norm(x, shape, None, None, eps)
        y = y if scale is None else y * scale
        return y if bias is None else y + bias

    return run


def _layer_statistics(axis: int, eps: float, stash: torch.dtype) -> Op:
    """-> y, mean, 1 / sqrt(var + eps); the latter two with the normalised axes of size 1."""

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        axes = tuple(range(axis % x.dim(), x.dim()))
        # Never narrower than the data, so that a network can be moved to double precision.
        wide = x.to(torch.promote_types(x.dtype, stash))
        mean = wide.mean(axes, keepdim=True)
        inverse = (wide - mean).square().mean(axes, keepdim=True).add(eps).rsqrt()
        y = ((wide - mean) * inverse).to(x.dtype) * scale
        return y if bias is None else y + bias, mean.to(stash), inverse.to(stash)

    return run


@op("RMSNormalization", 23, learned=(1,))
def rms_normalization(node: NodeView) -> Op:
    """scale x / sqrt(mean of x^2 + eps) over all axes from `axis` on; the quotient is computed in `stash_type` or x's own."""
    axis, eps, stash = node.attr_int("axis", -1), node.attr_float("epsilon", 1e-5), node.torch_type("stash_type")

    def run(x: Tensor, scale: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, stash))
        axes = tuple(range(axis % x.dim(), x.dim()))
        return (wide * wide.square().mean(axes, keepdim=True).add(eps).rsqrt()).to(x.dtype) * scale

    return run


@op("InstanceNormalization", 6, 22, learned=(1, 2))
def instance_normalization(node: NodeView) -> Op:
    """x (N, C, *), scale and bias (C,)."""
    eps = node.attr_float("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return F.instance_norm(x, None, None, scale, bias, True, 0.0, eps)

    return run


@op("GroupNormalization", 18, 21, learned=(1, 2))
def group_normalization(node: NodeView) -> Op:
    """x (N, C, *); scale and bias are (groups,) up to opset 20 and (C,) from 21 on."""
    groups, eps = node.attr_int("num_groups"), node.attr_float("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if scale.shape[0] != x.shape[1]:
            each = x.shape[1] // groups
            scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
        return F.group_norm(x, groups, scale, bias, eps)

    return run


@op("LRN", 1, 13)
def local_response(node: NodeView) -> Op:
    """x / (bias + alpha/size * sum of squares over `size` neighbouring channels)^beta."""
    size, alpha = node.attr_int("size"), node.attr_float("alpha", 1e-4)
    beta, bias = node.attr_float("beta", 0.75), node.attr_float("bias", 1.0)
    before, behind = (size - 1) // 2, size // 2

    def run(x: Tensor) -> Tensor:
        channels = x.shape[1]
        squares = F.pad(x.square().flatten(2), (0, 0, before, behind))
        total = squares.unfold(1, size, 1).sum(-1) if channels else squares
        return x / (bias + alpha / size * total.view_as(x)).pow(beta)

    return run


@op("LpNormalization", 1, 22)
def lp_normalization(node: NodeView) -> Op:
    """x / ||x||_p along one axis; 0 where the norm is 0."""
    axis, p = node.attr_int("axis", -1), node.attr_int("p", 2)

    def run(x: Tensor) -> Tensor:
        return F.normalize(x, float(p), axis, torch.finfo(x.dtype).tiny)

    return run


@op("MeanVarianceNormalization", 9, 13)
def mean_variance(node: NodeView) -> Op:
    """(x - mean) / (sqrt(var) + 1e-9) over `axes`."""
    axes = node.attr_ints("axes") or [0, 2, 3]

    def run(x: Tensor) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)

    return run
