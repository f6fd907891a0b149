"""The options that say what is to be compressed and how its ranks are chosen, and the settings that they make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from batude_onnx.cli.options import (
    data_options,
    input_options,
    model_option,
    provider_option,
    require_data,
    seed_option,
    texts,
    threads_option,
    together,
)
from batude_onnx.records import Wishes
from batude_onnx.settings import LayerWishes, Settings, Source
from batude_onnx.training.recipe import RECIPES


def _ranks(given: tuple[str, ...]) -> dict[str, tuple[int, ...] | None]:
    """`PATTERN=16,8`, `PATTERN=16` or `PATTERN=whole`."""
    found: dict[str, tuple[int, ...] | None] = {}
    for text in given:
        pattern, _, value = text.rpartition("=")
        numbers = value.split(",")
        if not pattern or (value != "whole" and not all(number.strip().isdigit() and int(number) for number in numbers)):
            raise ValueError(f"{text!r} is not PATTERN=RANKS such as layer1*=16,8 or fc=whole")
        found[pattern] = None if value == "whole" else tuple(int(number) for number in numbers)
    return found


def _least(given: tuple[str, ...]) -> dict[str, int]:
    """`PATTERN=16`."""
    found = {}
    for text in given:
        pattern, _, value = text.rpartition("=")
        if not pattern or not value.strip().isdigit() or not int(value):
            raise ValueError(f"{text!r} is not PATTERN=RANK such as layer1*=16")
        found[pattern] = int(value)
    return found


# MODEL, and how its ranks are chosen.
run_options = together(
    model_option,
    click.option(
        "--budget", multiple=True,
        help="What the file may cost: 2.5x, 40% or 100k (parameters), macs=3x, size=900kB, latency=1.8x or latency=4.5ms; "
        "several may be given, and all must hold.",
    ),
    click.option(
        "--plan", "plan_file", type=click.Path(path_type=Path), metavar="FILE",
        help="Take the ranks that stand in this file of `batude-onnx plan`, edited or not; and its budget, if none is given.",
    ),
    click.option(
        "--batch", type=click.IntRange(1), default=1, show_default=True, help="Samples in a run whose latency is limited."
    ),
    click.option(
        "--rank-multiple", type=click.IntRange(1), metavar="N",
        help="Ranks are multiples of N; by default they suit the runtime's block of channels.",
    ),
    click.option(
        "--include", multiple=True, metavar="PATTERN", help="Compress only layers of such a name: 'layer3*'; may be repeated."
    ),
    click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave layers of such a name whole."),
    click.option(
        "--ranks", "layer_ranks", multiple=True, callback=texts(_ranks), metavar="PATTERN=RANKS",
        help="The ranks of such layers: conv1=16,8 or fc=32 or conv1=whole.",
    ),
    click.option(
        "--least-rank", "least", multiple=True, callback=texts(_least), metavar="PATTERN=RANK",
        help="No rank of such layers is smaller: 'layer1*=16'.",
    ),
    data_options,
    click.option("--limit", type=click.IntRange(1), help="Use so many training samples only."),
    click.option("--no-augment", is_flag=True, help="Train on the images as they are: no shifts, no mirroring."),
    click.option(
        "--recipe", type=click.Choice(sorted(RECIPES)), default="default", show_default=True,
        help="How ranks are chosen: measured; 'batude': learned in the first epochs; 'paper': by the letter of Algorithm 1.",
    ),
    seed_option,
    click.option("--device", default="cpu", show_default=True, help="Where torch trains: cpu or cuda."),
    provider_option,
    threads_option,
    input_options,
)  # fmt: skip


def settings_of(given: Mapping[str, Any], output: Path, **more: Any) -> Settings:
    """What `run_options` have read, with `output` and what else a command knows."""
    data = given["data"]
    require_data(data, mean=given["mean"], std=given["std"], limit=given["limit"], no_augment=given["no_augment"])
    if not given["budget"] and given["plan_file"] is None:
        raise click.UsageError("Missing option '--budget': what may the file cost, such as 2.5x or latency=1.5x?")
    source = None if data is None else Source(data, given["limit"], given["mean"], given["std"], not given["no_augment"])
    return Settings(
        model=given["model"],
        output=output,
        budget=",".join(given["budget"]),
        data=source,
        recipe=given["recipe"],
        seed=given["seed"],
        device=given["device"],
        provider=given["provider"],
        threads=given["threads"],
        batch=given["batch"],
        rank_multiple=given["rank_multiple"],
        inputs=Wishes(given["inputs"], given["dims"]),
        layers=LayerWishes(given["include"], given["exclude"], given["layer_ranks"], given["least"]),
        plan=given["plan_file"],
        **more,
    )
