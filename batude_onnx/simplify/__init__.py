"""The written graph folded by onnxsim, its outside kept."""

from batude_onnx.simplify.onnxsim_pass import simplify, skip_reason

__all__ = ["simplify", "skip_reason"]
