"""A running average of a network's values (Polyak & Juditsky, SIAM J. Control Optim. 30(4), 1992)."""

from __future__ import annotations

from torch import nn


class Average:
    """Of all floating-point parameters and buffers of `net`, over about the last `share` of a run."""

    def __init__(self, net: nn.Module, share: float) -> None:
        self.share = share
        held = (*net.parameters(), *net.buffers())
        self._values = [value.detach() for value in held if value.is_floating_point()]
        self._averages = [value.clone() for value in self._values]

    def add(self, step: int, steps: int) -> None:
        """Take in the network's values after `step` of `steps`. The first ones weigh as much as the window has room for."""
        window = max(1.0, min(self.share * steps, step / 2))
        for average, value in zip(self._averages, self._values, strict=True):
            average.lerp_(value, 1 / window)

    def put(self) -> None:
        """Give the average to the network."""
        for average, value in zip(self._averages, self._values, strict=True):
            value.copy_(average)
