"""What moves the weights: SGD, and for factors a step of orthogonal directions.

The factors of a chain are badly scaled against each other, and the gradient of each is dominated by a few directions. Muon
(Jordan et al., 2024, kellerjordan.github.io/posts/muon) takes the momentum's nearest orthogonal matrix in its place, which turns
all directions alike. Here the step is a share of the weight's own norm, so that one rate fits factors of every size and shape.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# A quintic that brings singular values of 0..1 near to 1 within a few rounds (coefficients: Jordan et al.).
QUINTIC, ROUNDS = (3.4445, -4.7750, 2.0315), 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """About the orthogonal factors U V' of `matrices` (n, rows, columns) = U S V', scaled to a norm of 1 each."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    found: Tensor = x if wide else x.mT
    return found


class RelativeMuon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; `lr` is the length of a step as a share of the norm of the weight that takes it.

    Weights are taken as matrices (S, everything else). There is no weight decay: the norm hardly moves.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; weights of one shape go together."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                held = state.setdefault("momentum", torch.zeros_like(parameter))
                held.lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(held, group["momentum"]).flatten(1)
                alike[tuple(ahead.shape)].append((parameter, ahead))
            for pairs in alike.values():
                turned = orthogonalised(torch.stack([ahead for _, ahead in pairs]))
                for (parameter, _), direction in zip(pairs, turned, strict=True):
                    parameter.sub_(direction.reshape(parameter.shape) * (group["lr"] * parameter.norm()))


def optimizers(
    net: nn.Module, rate: float, turn: float, momentum: float, nesterov: bool, decay: float
) -> list[torch.optim.Optimizer]:
    """What trains all parameters of `net` at the peak `rate`. Weights are decayed; biases and normalisation are not.

    With a `turn`, weights take orthogonal steps of this share of their norm in the place of SGD's. The group of each optimizer
    that has another peak than `rate` says under "scale" by how much.
    """
    weights = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in net.parameters() if parameter.ndim <= 1]
    plain: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0, "scale": 1.0}]
    made: list[torch.optim.Optimizer] = []
    if turn and weights:
        made.append(RelativeMuon([{"params": weights, "scale": turn / rate}], lr=turn, momentum=momentum))
    else:
        plain.append({"params": weights, "weight_decay": decay, "scale": 1.0})
    return [*made, torch.optim.SGD(plain, lr=rate, momentum=momentum, nesterov=nesterov)]


def at_rate(movers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Set the rate of all `movers`, each group of parameters at its scale."""
    for mover in movers:
        for group in mover.param_groups:
            group["lr"] = rate * group["scale"]
