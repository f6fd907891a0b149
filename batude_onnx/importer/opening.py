"""A graph whose batch is fixed, with the batch open: sizes that its exporter has written down follow the data instead.

Whether such a graph computes each sample by itself is for the caller to try: it is trained and never written.
"""

from __future__ import annotations

from itertools import count

import numpy as np
import onnx_ir as ir

from batude_onnx.importer.constants import origin, stored


def any_batch(model: ir.Model, batch: int) -> ir.Model:
    """A copy of `model`, which is made for `batch` samples, in which constant sizes of Reshape and Resize leave the first axis
    open."""
    opened = model.clone()
    graph, numbers = opened.graph, count()
    for node in graph:
        place = {"Reshape": 1, "Resize": 3}.get(node.op_type)
        given = node.inputs[place] if place is not None and place < len(node.inputs) else None
        if place is None or given is None or node.domain not in ("", "ai.onnx"):
            continue
        held = stored(origin(given))
        sizes = [] if held is None else held.numpy().tolist()
        free = _reshaped(sizes, batch) if node.op_type == "Reshape" else _resized(node, sizes, batch)
        if free is not None:
            fresh = ir.Value(name=f"{node.outputs[0].name}@sizes{next(numbers)}", const_value=ir.tensor(np.array(free, np.int64)))
            graph.register_initializer(fresh)
            node.replace_input_with(place, fresh)
    return opened


def _reshaped(sizes: list[int], batch: int) -> list[int] | None:
    if not sizes:
        return None
    if -1 not in sizes:
        return [-1, *sizes[1:]] if sizes[0] % batch == 0 else None
    return [0, *sizes[1:]] if sizes[0] == batch else None


def _resized(node: ir.Node, sizes: list[int], batch: int) -> list[int] | None:
    """The sizes of the spatial axes alone; `node` is told that it is given these."""
    if "axes" in node.attributes or len(sizes) < 3 or sizes[0] != batch:
        return None
    node.attributes.add(ir.AttrInt64s("axes", list(range(2, len(sizes)))))
    return sizes[2:]
