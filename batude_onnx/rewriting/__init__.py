"""Surgery on the original graph."""

from batude_onnx.rewriting.rewrite import rewrite

__all__ = ["rewrite"]
