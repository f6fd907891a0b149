"""How fast training is: against a plain loop, and BC-ADL against plain steps of the same network.

    python -m tools.bench_train [MODEL.onnx] [--device cuda]

Both figures are ratios of minima of runs in turns, on images of CIFAR's size made at random. The plain loop is what one writes
first: the same network and teacher, eager, float32, NCHW memory, images augmented one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from batude_onnx.budget import Terms, parse_budget
from batude_onnx.importer import GraphNet, import_graph
from batude_onnx.loading import load_model
from batude_onnx.proving import survey
from batude_onnx.training import compressing, memory, normalisation
from batude_onnx.training.batches import Augmentation, Batches
from batude_onnx.training.loop import train
from batude_onnx.training.precision import native_bfloat16
from batude_onnx.training.recipe import RECIPES

SIDE, SHIFT = 32, 4
# Z is renewed as seldom as in a run of full length, though this one is short.
RECIPE = replace(RECIPES["batude"], least_solves=0)


def plain_epoch(net: GraphNet, teacher: GraphNet, images: Tensor, labels: Tensor, batch: int) -> None:
    """One pass over `images` (N, 3, H, W) bytes."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9, nesterov=True, weight_decay=1e-4)
    order = torch.randperm(len(images))
    net.train()
    teacher.eval()
    for start in range(0, len(images), batch):
        picked = []
        for index in order[start : start + batch].tolist():
            image = F.pad(images[index], (SHIFT,) * 4)
            y, x = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
            image = image[:, y : y + SIDE, x : x + SIDE]
            picked.append(image.flip(2) if torch.rand(()) < 0.5 else image)
        inputs = torch.stack(picked).float() / 255
        with torch.no_grad():
            target = teacher(inputs)
        loss = RECIPE.objective(net(inputs), target, labels[order[start : start + batch]])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def minima(calls: list[Callable[[], None]], runs: int, device: str) -> list[float]:
    """The shortest time of each, run in turns; the first turn is not counted."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(runs + 1):
        for call, kept in zip(calls, times, strict=True):
            began = time.perf_counter()
            call()
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize(device)
            kept.append(time.perf_counter() - began)
    return [min(kept[1:]) for kept in times]


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path), default=Path("models/resnet20-cifar10.onnx"))
@click.option("--samples", default=3200, show_default=True, help="Images in one run.")
@click.option("--runs", default=5, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(model: Path, samples: int, runs: int, device: str) -> None:
    """Print both ratios."""
    loaded = load_model(model)
    seen = survey(loaded)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (samples, SIDE, SIDE, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, samples)
    batches = Batches(pixels, labels, batch=RECIPE.batch, augmentation=Augmentation(SHIFT, True), device=device)

    def network() -> GraphNet:
        net = import_graph(loaded).to(device)
        normalisation.restore(net, normalisation.restorable(seen.sites), batches.sample(256))
        return net

    def teacher() -> GraphNet:
        return import_graph(loaded).to(device).requires_grad_(False)

    # Each loop lays the weights out in its own way, so none shares a network with another.
    nets, teachers = [network() for _ in range(3)], [teacher() for _ in range(3)]
    moved = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)
    rules = RECIPE.rules(seen.compressible, Terms(parse_budget(["2.6x"], seen.cost), seen.cost), {}, {})
    targets = torch.from_numpy(labels).to(device)

    def plain() -> None:
        plain_epoch(nets[0], teachers[0], moved, targets, RECIPE.batch)

    @memory.kept()
    def ours() -> None:
        train(nets[1], teachers[1], batches, RECIPE, RECIPE.bcadl, name="plain", epochs=1, report=lambda _: None)

    @memory.kept()
    def learning() -> None:
        compressing.learn_ranks(
            nets[2], teachers[2], seen.compressible, batches, RECIPE, rules, metric="params", epochs=1, report=lambda _: None
        )

    eager, fast, bcadl = minima([plain, ours, learning], runs, device)
    where = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else f"{torch.get_num_threads()} threads"
    click.echo(
        f"{model.name}, {where}, bfloat16 {'native' if native_bfloat16(device) else 'not native'}, {samples} images a run, "
        f"minima of {runs} runs in turns"
    )
    click.echo(f"plain eager float32 loop  {samples / eager:7.0f} images/s")
    click.echo(f"training loop             {samples / fast:7.0f} images/s   {eager / fast:.2f}x")
    click.echo(f"the same with BC-ADL      {samples / bcadl:7.0f} images/s   {100 * (bcadl / fast - 1):+.1f} % time")


if __name__ == "__main__":
    main()
