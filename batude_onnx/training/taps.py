"""What the layers of a network receive, kept during a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from batude_onnx.importer import GraphNet


class Taps:
    """The inputs of some steps of `net`, by key, from its last forward pass. Use as a context: hooks are taken off at its end.

    The input of a layer means the same in a network and in its compressed copy, whatever stands in the layer's place and whether
    its BatchNorm is folded.
    """

    def __init__(self, net: GraphNet, keys: Sequence[str]) -> None:
        self.values: dict[str, Tensor] = {}
        self._handles = [net.step(key).register_forward_pre_hook(self._keeper(key)) for key in keys if net.has_step(key)]

    def _keeper(self, key: str) -> Any:
        def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            self.values[key] = given[0]

        return keep

    def __enter__(self) -> Taps:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
