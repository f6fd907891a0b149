"""What layers see, and what truncating them does, from the original in onnxruntime alone: the graph is not imported."""

from batude_onnx.calibration.damage import measure
from batude_onnx.calibration.moments import collect, metric_of
from batude_onnx.calibration.refitting import refit

__all__ = ["collect", "measure", "metric_of", "refit"]
