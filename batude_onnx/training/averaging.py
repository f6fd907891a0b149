"""A running average of a network's values (Polyak & Juditsky, SIAM J. Control Optim. 30(4), 1992)."""

from __future__ import annotations

from torch import Tensor, nn


class Average:
    """Of all floating-point parameters and buffers of `net`, over about the last `share` of a run."""

    def __init__(self, net: nn.Module, share: float) -> None:
        self.share = share
        self._values = {name: value.detach().clone() for name, value in _floats(net).items()}

    def add(self, net: nn.Module, step: int, steps: int) -> None:
        """Take in the values after `step` of `steps`. The first ones weigh as much as the window has room for."""
        window = max(1.0, min(self.share * steps, step / 2))
        for name, value in _floats(net).items():
            self._values[name].lerp_(value.detach(), 1 / window)

    def put(self, net: nn.Module) -> None:
        """Give the average to `net`."""
        for name, value in _floats(net).items():
            value.detach().copy_(self._values[name])


def _floats(net: nn.Module) -> dict[str, Tensor]:
    held = (*net.named_parameters(), *net.named_buffers())
    return {name: value for name, value in held if value.is_floating_point()}
