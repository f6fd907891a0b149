"""Budget-aware low-rank compression of trained CNNs, ONNX to ONNX."""

from importlib.metadata import version

__version__ = version("batude-onnx")
