"""The block of channels that a runtime computes at a time: what does not fill one costs as much as if it did.

It is found out rather than looked up: onnxruntime's CPU kernels pad the weights of a convolution to whole blocks when the graph
is optimised, and the padded weight can be read in the graph that it writes.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir

from batude_onnx.validation.sessions import open_session

# One channel more than a whole number of any block.
PROBE = 65
# Tensor cores take half-precision channels by eight (NVIDIA, "Tensor Core requirements"), and TF32 by four.
BLOCKS = {"cuda": 8}
# Where weights are not padded: the width of a vector register of floats that every such machine has.
LEAST = 4


def channel_block(provider: str) -> int:
    """How many channels fill a block with this provider, here."""
    if provider in BLOCKS:
        return BLOCKS[provider]
    kind = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    data = onnx_ir.Value(name="x", type=kind, shape=onnx_ir.Shape([1, PROBE - 1, 4, 4]))
    weight = onnx_ir.Tensor(np.ones((PROBE, PROBE - 1, 3, 3), np.float32), name="w")
    held = onnx_ir.Value(name="w", type=kind, shape=weight.shape, const_value=weight)
    node = onnx_ir.node("Conv", [data, held])
    out = node.outputs[0]
    out.name, out.type, out.shape = "y", kind, onnx_ir.Shape([1, PROBE, 2, 2])
    graph = onnx_ir.Graph([data], [out], nodes=[node], initializers=[held], opset_imports={"": 13}, name="probe")
    with TemporaryDirectory(prefix="batude-onnx-") as folder:
        path = Path(folder) / "optimised.onnx"
        content = onnx_ir.to_proto(onnx_ir.Model(graph, ir_version=8)).SerializeToString()
        open_session(content, provider, None, {"optimized_model_filepath": str(path)})
        optimised = onnx_ir.load(path)
    sizes = [
        value.shape[0] for value in optimised.graph.initializers.values() if value.shape is not None and len(value.shape) == 4
    ]
    padding = max((size for size in sizes if isinstance(size, int)), default=PROBE) - (PROBE - 1)
    return padding if padding > 1 else LEAST
