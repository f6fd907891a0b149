"""The part of a graph that cannot be imported: the original model, run in onnxruntime, says what it gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from batude_onnx.validation import Session, exposed, open_graph


class Outside:
    """What the original model gives for the values `names`, whatever becomes of the network that reads them.

    A student and its teacher thus see the same, and what depends on the data in a shape keeps the original's.
    """

    def __init__(self, model: ir.Model, names: Sequence[str], provider: str = "cpu", threads: int | None = None) -> None:
        self.names = tuple(names)
        self._session: Session = open_graph(exposed(model, names), provider, threads)
        self._last: tuple[tuple[torch.Tensor, ...], list[torch.Tensor]] | None = None

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The values for `inputs`, on their device. Raises ModelError where onnxruntime cannot run these."""
        if self._last is None or any(a is not b for a, b in zip(self._last[0], inputs, strict=True)):
            feeds = {name: _array(x) for name, x in zip(self._session.input_names, inputs, strict=True)}
            found = self._session.run(feeds)
            self._last = tuple(inputs), [torch.from_numpy(found[name]).to(inputs[0].device) for name in self.names]
        return self._last[1]

    def __deepcopy__(self, memo: object) -> Outside:
        # A session cannot be copied, and copies of a network may share it.
        return self


def _array(x: torch.Tensor) -> npt.NDArray[np.generic]:
    array: npt.NDArray[np.generic] = x.detach().cpu().numpy()
    return array
