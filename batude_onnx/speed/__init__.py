"""What a layer costs in time, on the machine and in the runtime that the user names."""

from batude_onnx.speed.model import SpeedModel
from batude_onnx.speed.timing import timed

__all__ = ["SpeedModel", "timed"]
