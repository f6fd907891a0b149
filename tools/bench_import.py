"""How fast the imported network is beside the hand-written torch module that it was exported from.

    python -m tools.bench_import

Interleaved training steps (forward, backward) and forward passes of a ResNet-20; the figure is the ratio of the minima,
imported over hand-written: 1.10 would be 10 % slower.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from batude_onnx.importer import import_graph
from batude_onnx.loading import load_model
from tools.networks import cifar_resnet


def exported(module: nn.Module, path: Path) -> None:
    """With BatchNorm kept, so that both networks do the same work."""
    torch.onnx.export(
        module.eval(),
        (torch.zeros(2, 3, 32, 32),),
        str(path),
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        dynamic_axes={"input": {0: "batch"}},
        input_names=["input"],
    )


def step(network: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """One forward and backward pass."""
    network(x).square().mean().backward()  # type: ignore[no-untyped-call]


def _run(network: Callable[[Tensor], object], x: Tensor) -> None:
    network(x)


def ratio(first: Callable[[], None], second: Callable[[], None], runs: int) -> float:
    """Minimum of `second` over minimum of `first`, run in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for call, kept in zip((first, second), times, strict=True):
            began = time.perf_counter()
            call()
            kept.append(time.perf_counter() - began)
    return min(times[1][2:]) / min(times[0][2:])


@click.command()
@click.option("--batch", default=128, show_default=True)
@click.option("--runs", default=20, show_default=True)
def main(batch: int, runs: int) -> None:
    """Print the two ratios."""
    torch.manual_seed(0)
    written = cifar_resnet(20)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet20.onnx"
        exported(written, path)
        net = import_graph(load_model(path))
    written.train()
    net.train()
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    training = ratio(lambda: step(written, x), lambda: step(lambda y: net(y)[0], x), runs)
    written.eval()
    net.eval()
    with torch.no_grad():
        forward = ratio(lambda: _run(written, x), lambda: _run(net, x), runs)
    click.echo(f"imported / hand-written, ResNet-20, batch {batch}, {torch.get_num_threads()} threads, minima of {runs - 2} runs")
    click.echo(f"training step {training:.3f}")
    click.echo(f"forward pass  {forward:.3f}")


if __name__ == "__main__":
    main()
