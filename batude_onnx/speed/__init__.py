"""What a layer costs in time, on the machine and in the runtime that the user names."""

from batude_onnx.speed.model import SpeedModel, measure

__all__ = ["SpeedModel", "measure"]
