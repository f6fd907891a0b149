"""The command line: options in, tables out, errors as exit codes. Nothing else in the package prints."""

from batude_onnx.cli.bench import bench
from batude_onnx.cli.compress import compress
from batude_onnx.cli.inspect import inspect
from batude_onnx.cli.main import main
from batude_onnx.cli.plan import plan
from batude_onnx.cli.validate import validate

for command in (compress, plan, inspect, validate, bench):
    main.add_command(command)

__all__ = ["main"]
