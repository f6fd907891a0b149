"""If and Loop whose course is known at import: the taken branch, or the repeated body, in place of the node."""

from __future__ import annotations

from itertools import count

import numpy as np
import onnx_ir as ir

from batude_onnx.importer.inlining import Splice
from batude_onnx.importer.registry import expansion
from batude_onnx.importer.view import Refusal

_VERSIONS = (1, 11, 13, 16, 19, 21, 23, 24, 25)
# A network of several hundred repetitions would take long to import, and longer to train.
_MOST = 256


@expansion("If", *_VERSIONS)
def branch(splice: Splice) -> list[ir.Value]:
    """The nodes of the branch that the condition chooses."""
    condition = splice.known(0)
    if condition is None:
        raise Refusal(
            "its condition depends on the data, or on a size that the file leaves open",
            "export the network for one of the two cases",
        )
    return splice.place(splice.graph("then_branch" if condition.reshape(-1)[0] else "else_branch"))


@expansion("Loop", *_VERSIONS)
def loop(splice: Splice) -> list[ir.Value]:
    """The body once for each step: (step, condition, *state) -> (condition, *state, *rows); rows are stacked at the end."""
    advice = "export the network with the loop unrolled"
    steps = splice.known(0) if splice.has(0) else None
    if splice.has(0) and steps is None:
        raise Refusal("its trip count depends on the data, or on a size that the file leaves open", advice)
    most = None if steps is None else max(int(steps.reshape(-1)[0]), 0)
    go_on = splice.known(1) if splice.has(1) else None
    if splice.has(1) and go_on is None:
        raise Refusal("its condition depends on the data, or on a size that the file leaves open", advice)
    body, state = splice.graph("body"), splice.inputs(2)
    rows: list[list[ir.Value]] = []
    for step in count():
        if step == most or (go_on is not None and not go_on.reshape(-1)[0]):
            break
        if step == _MOST:
            raise Refusal(f"it has more than {_MOST} steps", advice)
        given = [splice.constant(ir.tensor(np.array(step, np.int64))), splice.constant(ir.tensor(np.array(True)))]
        goes, *results = splice.place(body, [*given, *state])
        state, row = results[: len(state)], results[len(state) :]
        rows.append(row)
        # Without a condition that is fed to it, what the body says of going on is ignored.
        if splice.has(1):
            go_on = splice.known(goes)
            if go_on is None:
                raise Refusal("its condition depends on the data, or on a size that the file leaves open", advice)
    if not rows and splice.outputs > len(state):
        raise Refusal("it has no steps, and the shapes of its rows are not known", "export the network without it")
    return [*state, *(_stacked(splice, list(column)) for column in zip(*rows, strict=True))]


def _stacked(splice: Splice, rows: list[ir.Value]) -> ir.Value:
    if splice.opset >= 13:
        axis = [splice.constant(ir.tensor(np.array([0], np.int64)))]
        wide = [splice.node("Unsqueeze", [row, *axis]) for row in rows]
    else:
        wide = [splice.node("Unsqueeze", [row], [ir.AttrInt64s("axes", [0])]) for row in rows]
    return splice.node("Concat", wide, [ir.AttrInt64("axis", 0)])
