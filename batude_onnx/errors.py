"""Every way in which a run can refuse, each with an exit code of its own.

A message is one line: what is wrong, where, and what to do. Click keeps 2 for wrong use of the command line.
"""

from __future__ import annotations


class BatudeError(Exception):
    """Base of all errors that a user is meant to read; `exit_code` is what the process returns."""

    exit_code = 1


class ModelError(BatudeError):
    """The model file is missing, is not ONNX, is cut short, or fails the ONNX checker."""

    exit_code = 3


class UnsupportedError(BatudeError):
    """Nodes that the importer cannot turn into torch, all of them named; or what was asked for cannot be done without them."""

    exit_code = 4


class NothingToCompressError(BatudeError):
    """The model holds no layer that could be made smaller."""

    exit_code = 5


class BudgetError(BatudeError):
    """The budget's text is wrong, or no choice of ranks can meet it."""

    exit_code = 6


class DataError(BatudeError):
    """The data file is unreadable, or its samples or labels do not fit the model."""

    exit_code = 7


class OutputError(BatudeError):
    """The output path cannot be written."""

    exit_code = 8


class ParityError(BatudeError):
    """A written graph does not compute what it must."""

    exit_code = 9


class BudgetMissedError(BatudeError):
    """The finished file, counted as written, is over the budget."""

    exit_code = 10


class TooSlowError(BudgetMissedError):
    """The finished file takes `share` times the time that the budget allows."""

    def __init__(self, text: str, share: float) -> None:
        super().__init__(text)
        self.share = share


class RuntimeMissingError(BatudeError):
    """onnxruntime is not installed, or the execution provider asked for is not really there."""

    exit_code = 11


class PlanError(BatudeError):
    """A plan file, or what was asked for single layers, does not fit the model."""

    exit_code = 13


class TrainingError(BatudeError):
    """Training diverged (loss not finite)."""

    exit_code = 12
