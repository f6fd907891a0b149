"""Options that commands share, and how their texts are read."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from batude_onnx.errors import BatudeError
from batude_onnx.feeding import read_dims, read_inputs

INTERRUPTED = 130
FILE_WIDTH = 110


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A `BatudeError` becomes one line on stderr and its exit code."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except BatudeError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted; nothing was written", err=True)
            sys.exit(INTERRUPTED)

    return run


def numbers(context: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """Numbers with commas between."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 0.485,0.456,0.406") from error


def finite(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """A number that is one."""
    if value is not None and not isfinite(value):
        raise click.BadParameter(f"{value} is not a number of epochs")
    return value


def seconds_of(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """A time, in seconds."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([smh])", text.strip().lower())
    if match is None or not float(match[1]):
        raise click.BadParameter(f"{text!r} is not a time such as 90s, 20m or 1.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def texts(read: Callable[[tuple[str, ...]], Mapping[str, Any]]) -> Callable[..., Mapping[str, Any]]:
    """A callback for an option that is given several times; `read` raises ValueError for what it cannot read."""

    def callback(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> Mapping[str, Any]:
        try:
            return read(texts)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return callback


model_option = click.argument("model", type=click.Path(path_type=Path))
provider_option = click.option("--provider", default="cpu", show_default=True, help="Where onnxruntime runs: cpu or cuda.")
threads_option = click.option("--threads", type=click.IntRange(1, 1024), help="Threads of onnxruntime and torch.")
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 2), default=0, show_default=True, help="Of all that is random."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, for scripts.")


Command = Callable[..., None]
Option = Callable[[Command], Command]


def together(*options: Option) -> Option:
    """These as one, in the order in which the help lists them."""

    def apply(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


# What the data are and how they are normalised.
data_options = together(
    click.option(
        "--data", type=click.Path(path_type=Path),
        help=".npz with x_train and, if there are any, y_train, x_test, y_test: uint8 images (N,H,W,C), "
        "or float32 in the model's own layout. For several inputs: one array for each, by name, whose first axis counts runs.",
    ),
    click.option("--mean", callback=numbers, metavar="R,G,B", help="Of uint8 images scaled to 0..1; overrides the file's."),
    click.option("--std", callback=numbers, metavar="R,G,B", help="Of uint8 images scaled to 0..1; overrides the file's."),
)  # fmt: skip
# What inputs are fed where there are no data.
input_options = together(
    click.option(
        "--input", "inputs", multiple=True, callback=texts(read_inputs), metavar="NAME=SHAPE[:LOW..HIGH]",
        help="What an input is fed where there are no data, such as image=1,3,640,640:0..255 or ids=:0..30000.",
    ),
    click.option(
        "--dim", "dims", multiple=True, callback=texts(read_dims), metavar="NAME=SIZE",
        help="Size of all dimensions of this name, such as height=640; may be given several times.",
    ),
)  # fmt: skip
# Two models, one run or held against the other.
two_models = together(
    click.argument("first", type=click.Path(path_type=Path)), click.argument("second", type=click.Path(path_type=Path))
)
# How two models are run, and how what comes of it is told.
running_options = together(seed_option, provider_option, threads_option, input_options, json_option)


def plain(budget: str) -> str:
    """A budget in the name of a file."""
    return re.sub(r"[^0-9A-Za-z.]+", "-", budget.replace("%", "pct")).strip("-")


def require_data(data: Path | None, **given: object) -> None:
    """Options that say something of the data say nothing without it."""
    idle = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if data is None and idle:
        raise click.UsageError(f"{', '.join(idle)} without --data: give the data, or leave this out")


def console_for(stderr: bool = False) -> Console:
    """A file or a pipe gets lines of a fixed width, so that tables stay tables. Names may hold whatever rich reads as markup."""
    plain_one = Console(stderr=stderr, markup=False, emoji=False)
    if not plain_one.is_terminal:
        plain_one.width = FILE_WIDTH
    return plain_one
