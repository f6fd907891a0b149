"""What a layer's weights do to the loss, from a few hundred samples: the moments behind a `Metric`.

A is the second moment of the layer's input channels. G is the second moment of the gradient at the layer's output of the
negative log-likelihood of labels *sampled from the model's own prediction* (the Fisher matrix's block in the Kronecker
factorisation of Martens & Grosse, ICML 2015); no labels are needed. An output that is no classifier's is taken as the mean of
a Gaussian instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from batude_onnx.decomposition import Metric
from batude_onnx.errors import DataError
from batude_onnx.importer import GraphNet
from batude_onnx.records import Site

# How far from 1 the sum of a row of float16 probabilities may be.
SOFTMAX_ROUNDING = 1e-2


def is_classifier(outputs: Sequence[Tensor]) -> bool:
    """One output of shape (N, K), K > 1."""
    return len(outputs) == 1 and outputs[0].ndim == 2 and outputs[0].shape[1] > 1


def logits_of(scores: Tensor) -> Tensor:
    """Class scores (N, K) as logits, float32: the logarithm where the model ends in a softmax, else the scores themselves.

    Any temperature can be applied to the logarithm of probabilities as to the logits behind them, since the two differ by a
    constant in each row.
    """
    scores = scores.float()
    rows = scores.detach()
    if bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < SOFTMAX_ROUNDING).all()):
        return scores.clamp_min(torch.finfo(torch.float32).tiny).log()
    return scores


def canonical(site: Site, stored: Tensor) -> Tensor:
    """A stored weight as (S, C/g, *kernel)."""
    weight: Tensor = site.layout.canonical(stored)
    return weight


def channels_last_axis(x: Tensor, site: Site) -> Tensor:
    """A layer's input or output as (rows, channels)."""
    moved = x.movedim(1, -1) if len(site.shape) > 2 else x
    return moved.reshape(-1, moved.shape[-1])


def _moment(x: Tensor, site: Site) -> Tensor:
    """Sum over rows of the outer products of each group's channels: (g, n, n), float64 on the CPU."""
    rows = channels_last_axis(x, site).float()
    grouped = rows.reshape(rows.shape[0], site.geometry.groups, -1).movedim(1, 0)
    return (grouped.mT @ grouped).double().cpu()


def sampled_loss(outputs: Sequence[Tensor], generator: torch.Generator, temperature: float = 4.0) -> Tensor:
    """Negative log-likelihood of labels drawn from the model's own prediction, summed over the batch.

    The prediction is softened by `temperature`, as in distillation: on its own training images a network is so sure of itself
    that a few samples would make up the whole moment.
    """
    if is_classifier(outputs):
        logits = logits_of(outputs[0]) / temperature
        drawn = torch.multinomial(logits.detach().softmax(1).cpu(), 1, generator=generator).to(logits.device)
        return -logits.log_softmax(1).gather(1, drawn).sum()
    total = outputs[0].new_zeros(())
    for output in outputs:
        if output.is_floating_point():
            total = total + (output * torch.randn(output.shape, generator=generator).to(output.device)).sum()
    return total


def require_numbers(site: Site, moments: Tensor) -> None:
    """Raises DataError where what a layer sees, or its squares, are no numbers."""
    if not bool(moments.isfinite().all()):
        raise DataError(
            f"on the samples, layer {site.key} meets NaN, infinities or numbers too large to be squared: check the data and how "
            f"they are normalised, or leave the layer out (--exclude {site.key})"
        )


def collect_metrics(
    net: GraphNet, sites: Sequence[Site], inputs: Iterable[Tensor], seed: int = 0, ridge: float = 1e-3
) -> dict[str, Metric]:
    """A `Metric` for each site that the loss depends on, from one pass of `inputs` forward and backward in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    moments: dict[str, list[Tensor | float]] = {site.key: [0.0, 0.0] for site in sites}

    def watch(site: Site, key: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            held = moments[site.key]
            held[0] = held[0] + _moment(given[0].detach(), site)

            def backward(gradient: Tensor) -> None:
                held[1] = held[1] + _moment(gradient, site)

            output.register_hook(backward)  # type: ignore[no-untyped-call]

        return net.step(key).register_forward_hook(hook)

    handles = [watch(site, key) for site in sites for key in site.keys]
    net.eval()
    for x in inputs:
        sampled_loss(net(x), generator).backward()  # type: ignore[no-untyped-call]
    for handle in handles:
        handle.remove()
    net.zero_grad(set_to_none=True)
    metrics = {}
    for site in sites:
        into, out = moments[site.key]
        # A layer that no gradient reaches is compared by its weights.
        if isinstance(into, Tensor) and isinstance(out, Tensor):
            require_numbers(site, into)
            # The gradient of an output that is no number is none either: then all outputs of the layer count alike.
            known = out if bool(out.isfinite().all()) else torch.eye(out.shape[-1], dtype=out.dtype).expand_as(out)
            metrics[site.key] = Metric.of_moments(into, known, ridge)
    return metrics
