"""The command line: options in, tables out, errors as exit codes. Nothing else in the package prints."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from batude_onnx import __version__
from batude_onnx.budget import METRICS
from batude_onnx.errors import BatudeError, ParityError
from batude_onnx.feeding import read_dims, read_inputs
from batude_onnx.records import Given, Wishes
from batude_onnx.settings import DEFAULT_EPOCHS, Settings, Source
from batude_onnx.training.recipe import RECIPES

INTERRUPTED = 130
FILE_WIDTH = 110


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
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


def _numbers(context: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 0.485,0.456,0.406") from error


def _finite(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not isfinite(value):
        raise click.BadParameter(f"{value} is not a number of epochs")
    return value


def _seconds(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([smh])", text.strip().lower())
    if match is None or not float(match[1]):
        raise click.BadParameter(f"{text!r} is not a time such as 90s, 20m or 1.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _texts(read: Callable[[tuple[str, ...]], Mapping[str, Any]]) -> Callable[..., Mapping[str, Any]]:
    def callback(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> Mapping[str, Any]:
        try:
            return read(texts)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return callback


_model = click.argument("model", type=click.Path(path_type=Path))
_provider = click.option("--provider", default="cpu", show_default=True, help="Where onnxruntime runs: cpu or cuda.")
_threads = click.option("--threads", type=click.IntRange(1, 1024), help="Threads of onnxruntime and torch.")
_seed = click.option("--seed", type=click.IntRange(0, 2**32 - 2), default=0, show_default=True, help="Of all that is random.")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, for scripts.")


def _data_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--std", callback=_numbers, metavar="R,G,B", help="Of uint8 images scaled to 0..1; overrides the file's."),
        click.option("--mean", callback=_numbers, metavar="R,G,B", help="Of uint8 images scaled to 0..1; overrides the file's."),
        click.option(
            "--data", type=click.Path(path_type=Path),
            help=".npz with x_train and, if there are any, y_train, x_test, y_test: uint8 images (N,H,W,C), "
            "or float32 in the model's own layout.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def _input_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--dim", "dims", multiple=True, callback=_texts(read_dims), metavar="NAME=SIZE",
            help="Size of all dimensions of this name, such as height=640; may be given several times.",
        ),
        click.option(
            "--input", "inputs", multiple=True, callback=_texts(read_inputs), metavar="NAME=SHAPE[:LOW..HIGH]",
            help="What an input is fed where there are no data, such as image=1,3,640,640:0..255 or ids=:0..30000.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def _require_data(data: Path | None, **given: object) -> None:
    """Options that say something of the data say nothing without it."""
    idle = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if data is None and idle:
        raise click.UsageError(f"{', '.join(idle)} without --data: give the data, or leave this out")


def _console(stderr: bool = False) -> Console:
    """A file or a pipe gets lines of a fixed width, so that tables stay tables."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=FILE_WIDTH)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="batude-onnx")
def main() -> None:
    """Make a trained CNN smaller: an ONNX file and a budget in, a proven ONNX file out."""


@main.command()
@_model
@click.option("--budget", required=True, help="2.5x, 40%, or a number: 100k parameters, 20M MACs.")
@click.option("--metric", type=click.Choice(METRICS), default="params", show_default=True, help="What the budget counts.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: MODEL with the budget in its name, here.")
@_data_options
@click.option("--limit", type=click.IntRange(1), help="Use so many training samples only.")
@click.option(
    "--epochs", type=click.FloatRange(0), callback=_finite, show_default=f"{DEFAULT_EPOCHS:g}",
    help="Passes over the training data in all; 0 trains nothing.",
)  # fmt: skip
@click.option(
    "--time", "seconds", callback=_seconds, metavar="DURATION",
    help="In the place of --epochs: wall-clock time for the whole run, such as 90s, 20m, 1.5h.",
)  # fmt: skip
@click.option(
    "--recipe",
    type=click.Choice(sorted(RECIPES)),
    default="default",
    show_default=True,
    help="How ranks are chosen: measured; 'batude': learned in the first epochs; 'paper': by the letter of Algorithm 1.",
)
@click.option("--no-augment", is_flag=True, help="Train on the images as they are: no shifts, no mirroring.")
@click.option("--no-simplify", is_flag=True, help="Leave the rewritten graph as it is, without onnxsim.")
@_seed
@click.option("--device", default="cpu", show_default=True, help="Where torch trains: cpu or cuda.")
@_provider
@_threads
@_input_options
@_json
@_guarded
def compress(
    model: Path,
    budget: str,
    metric: str,
    output: Path | None,
    data: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    limit: int | None,
    epochs: float | None,
    seconds: float | None,
    recipe: str,
    no_augment: bool,
    no_simplify: bool,
    seed: int,
    device: str,
    provider: str,
    threads: int | None,
    inputs: dict[str, Given],
    dims: dict[str, int],
    as_json: bool,
) -> None:
    """Write a smaller MODEL that keeps the budget and is proved to compute what was trained."""
    from batude_onnx.pipeline import compress as run
    from batude_onnx.report import ConsoleWatch, comparison_table, rank_table, to_json

    _require_data(data, mean=mean, std=std, limit=limit, no_augment=no_augment, time=seconds)
    if epochs is not None and seconds is not None:
        raise click.UsageError("--epochs and --time both say how long to train: give one of them")
    settings = Settings(
        model=model,
        output=output or Path(f"{model.stem}-{budget.replace('%', 'pct').replace('/', '-')}.onnx"),
        budget=budget,
        metric=metric,
        data=None if data is None else Source(data, limit, mean, std, augment=not no_augment),
        epochs=DEFAULT_EPOCHS if epochs is None else epochs,
        seconds=seconds,
        recipe=recipe,
        seed=seed,
        device=device,
        provider=provider,
        threads=threads,
        simplify=not no_simplify,
        inputs=Wishes(inputs, dims),
    )
    console = _console(stderr=as_json)
    with ConsoleWatch(console) as watch:
        verdict = run(settings, watch)
    if as_json:
        click.echo(to_json(verdict))
        return
    console.print()
    console.print(rank_table(verdict))
    console.print()
    console.print(comparison_table(verdict.comparison))
    console.print()
    worst = max(verdict.parity, key=lambda difference: difference.max_absolute)
    limit_text = f"{verdict.budget.limit:,} {verdict.budget.metric}"
    console.print(f"budget {verdict.budget.text}: at most {limit_text}, kept", highlight=False)
    console.print(f"parity with what was trained: {worst.max_absolute:.1e} at most, on output {worst.output}", highlight=False)
    console.print(f"written in {verdict.facts['seconds']} s: {settings.output} and {settings.output.with_suffix('.json').name}",
                  highlight=False, soft_wrap=True)  # fmt: skip


@main.command()
@_model
@_input_options
@_json
@_guarded
def inspect(model: Path, inputs: dict[str, Given], dims: dict[str, int], as_json: bool) -> None:
    """Show every layer of MODEL, what it costs, and whether it can be compressed."""
    from batude_onnx.pipeline import inspect as look
    from batude_onnx.report import layer_table, number, to_json

    seen = look(model, Wishes(inputs, dims))
    if as_json:
        rows = [asdict(site) | {"params": site.params, "macs": site.macs} for site in seen.sites]
        click.echo(to_json({"cost": asdict(seen.cost), "inputs": seen.feeding.shapes(), "layers": rows}))
        return
    console = _console()
    console.print(layer_table(seen.sites, seen.cost))
    within = sum(site.params for site in seen.compressible)
    share = 100 * within / seen.cost.params if seen.cost.params else 0.0
    macs = f"{number(seen.cost.macs)} MACs a sample" if seen.cost.macs else "MACs unknown"
    console.print()
    console.print(
        f"{number(seen.cost.params)} parameters, {macs}; {len(seen.compressible)} of {len(seen.sites)} layers compressible, "
        f"with {share:.1f} % of the parameters",
        highlight=False,
    )
    for note in filter(None, (seen.feeding.taken, seen.feeding.refused)):
        console.print(note, highlight=False, markup=False, soft_wrap=True)


@main.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@_data_options
@click.option("--equal", is_flag=True, help="Fail unless all outputs are equal within rounding.")
@_seed
@_provider
@_threads
@_input_options
@_json
@_guarded
def validate(
    first: Path,
    second: Path,
    data: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    equal: bool,
    seed: int,
    provider: str,
    threads: int | None,
    inputs: dict[str, Given],
    dims: dict[str, int],
    as_json: bool,
) -> None:
    """Hold model SECOND against FIRST: size, outputs, accuracy, speed."""
    from batude_onnx.pipeline import validate as hold
    from batude_onnx.report import ConsoleWatch, comparison_table, difference_table, to_json

    _require_data(data, mean=mean, std=std)
    source = None if data is None else Source(data, mean=mean, std=std)
    wishes, console = Wishes(inputs, dims), _console(stderr=as_json)
    with ConsoleWatch(console) as watch:
        comparison = hold(first, second, source, provider=provider, threads=threads, seed=seed, inputs=wishes, watch=watch)
    if as_json:
        click.echo(to_json(comparison))
    else:
        console.print(comparison_table(comparison, ("first", "second")))
        console.print()
        console.print(difference_table(comparison))
        if comparison.divergence is not None:
            console.print(str(comparison.divergence), highlight=False, markup=False, soft_wrap=True)
    wrong = [difference for difference in comparison.differences if not difference.within]
    if equal and wrong:
        worst = max(wrong, key=lambda difference: difference.max_absolute)
        where = "" if comparison.divergence is None else f"; {comparison.divergence}"
        raise ParityError(f"output {worst.output!r} of {second} is off by {worst.max_absolute:.3g} from {first}{where}")
