"""A graph whose batch is fixed, with the batch open: sizes that its exporter has written down follow the data instead.

Whether such a graph computes each sample by itself is for the caller to try: it is trained and never written.
"""

from __future__ import annotations

from itertools import count

import numpy as np
import onnx_ir as ir

from batude_onnx.importer.constants import origin, stored
from batude_onnx.importer.inlining import opset_of
from batude_onnx.importer.registry import find
from batude_onnx.importer.view import Refusal


def any_batch(model: ir.Model, batch: int) -> ir.Model:
    """A copy of `model`, which is made for `batch` samples, in which constant sizes leave the first axis open."""
    opened = model.clone()
    graph, numbers = opened.graph, count()
    for node in graph:
        try:
            sizes = find(node.domain, node.op_type, opset_of(opened, node)).sizes
        except Refusal:
            continue
        if sizes is None:
            continue
        place, follow = sizes
        given = node.inputs[place] if place < len(node.inputs) else None
        held = None if given is None else stored(origin(given))
        free = None if held is None else follow(node, held.numpy().tolist(), batch)
        if free is not None:
            fresh = ir.Value(name=f"{node.outputs[0].name}@sizes{next(numbers)}", const_value=ir.tensor(np.array(free, np.int64)))
            graph.register_initializer(fresh)
            node.replace_input_with(place, fresh)
    return opened
