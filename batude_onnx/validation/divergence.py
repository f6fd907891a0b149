"""Where two graphs part: the first node whose output is not the same in both.

Both are run with all values that they compute under the same name as further outputs, and these are held against each other in
the order of the reference's graph. Samples are taken one at a time, and the first of them that shows a difference decides: so
the values of one sample are in memory, whatever the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy.typing as npt
import onnx_ir

from batude_onnx.records import Divergence
from batude_onnx.validation.exposing import exposed
from batude_onnx.validation.parity import compare
from batude_onnx.validation.sessions import Session, open_graph

Feeds = Mapping[str, npt.NDArray[Any]]


def first_divergence(
    reference: onnx_ir.Model,
    other: onnx_ir.Model,
    feeds: Feeds,
    provider: str = "cpu",
    threads: int | None = None,
    *,
    half: bool = False,
) -> Divergence | None:
    """The first node of `reference` whose output differs in `other`; None where all that both compute agrees.

    Nodes in graphs inside of others are not looked into. Raises ModelError where onnxruntime cannot run one of the two so.
    """
    makers = {str(value.name): node for node in reference.graph for value in node.outputs if value.name}
    theirs = {str(value.name) for node in other.graph for value in node.outputs}
    names = [name for name in makers if name in theirs]
    sessions = [open_graph(exposed(model, names), provider, threads) for model in (reference, other)]
    for sample in _samples(sessions[0], feeds):
        ours, found = (session.run(sample) for session in sessions)
        for name in names:
            # A sequence is no array, and its elements have names of their own where they are read.
            if name not in ours or name not in found:
                continue
            (difference,) = compare({name: ours[name]}, {name: found[name]}, half=half)
            if not difference.within:
                node = makers[name]
                return Divergence(str(node.name or name), node.op_type, difference)
    return None


def _samples(session: Session, feeds: Feeds) -> Iterator[Feeds]:
    """One sample (or one batch of a fixed size) at a time; all at once where several inputs need not have one sample each."""
    if len(feeds) != 1:
        yield feeds
        return
    ((name, array),) = feeds.items()
    shape = session.input_shapes[name]
    if array.ndim == 0 or not shape:
        yield feeds
        return
    size = shape[0] if isinstance(shape[0], int) else 1
    for start in range(0, len(array) - size + 1, size):
        yield {name: array[start : start + size]}
