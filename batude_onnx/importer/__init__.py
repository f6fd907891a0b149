"""ONNX graph -> torch module that can be trained: `import_graph(model)` gives a `GraphNet`."""

from batude_onnx.importer import ops as _ops
from batude_onnx.importer.builder import import_graph
from batude_onnx.importer.net import GraphNet

__all__ = ["GraphNet", "import_graph"]

# Importing the families is what fills the registry.
assert _ops
