"""ONNX graph -> torch module that can be trained: `import_graph(model)` gives a `GraphNet`.

Weights keep the names that the file gives them, and every executed node is a step, keyed by its first output's name.
Nodes that only compute with constants are evaluated at import and have no step, nodes that no output needs are left out.
"""

from batude_onnx.importer import ops as _ops
from batude_onnx.importer.builder import import_graph, inlined
from batude_onnx.importer.net import GraphNet, Pass
from batude_onnx.importer.opening import any_batch

__all__ = ["GraphNet", "Pass", "any_batch", "import_graph", "inlined"]

# Importing the families is what fills the registry.
assert _ops
