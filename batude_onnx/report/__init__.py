"""What a person reads: tables and progress bars."""

from batude_onnx.report.jsons import to_json
from batude_onnx.report.plans import plan_table, promise_table, sensitivity_table, sweep_table
from batude_onnx.report.progress import ConsoleWatch
from batude_onnx.report.tables import (
    benchmark_table,
    comparison_table,
    difference_table,
    layer_table,
    number,
    rank_table,
    time_table,
)

__all__ = [
    "ConsoleWatch",
    "benchmark_table",
    "comparison_table",
    "difference_table",
    "layer_table",
    "number",
    "plan_table",
    "promise_table",
    "rank_table",
    "sensitivity_table",
    "sweep_table",
    "time_table",
    "to_json",
]
