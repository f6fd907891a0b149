"""Train the standard CIFAR ResNet-20 and export it as users have their models.

    python -m tools.train_baseline --data data/cifar10.npz --output models/resnet20-cifar10.onnx

One-cycle SGD (Nesterov), random crop and mirroring. `--start` begins another cycle from a checkpoint, and the model exported is
then the mean of the weights at the ends of both, its BatchNorm statistics measured anew (stochastic weight averaging: Izmailov
et al., UAI 2018). The ONNX file has opset 18, a dynamic batch, and BatchNorm folded into the convolutions; beside it a JSON
file says how it was made. A killed run goes on from its last finished epoch.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from pathlib import Path

import click
import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F

from batude_onnx.training.batches import Augmentation, Batches
from tools.datasets.spec import CIFAR10
from tools.networks import cifar_resnet

MEAN = np.array(CIFAR10.mean)
STD = np.array(CIFAR10.std)


def accuracy(model: nn.Module, batches: Batches) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    right = 0
    with torch.no_grad():
        for x, y in batches.in_order():
            assert y is not None
            right += int((model(x).argmax(1) == y).sum())
    return 100.0 * right / batches.samples


def save(state: dict[str, object], path: Path) -> None:
    """Written aside and moved, so that a kill leaves the last good checkpoint."""
    aside = path.with_suffix(".tmp")
    torch.save(state, aside)
    aside.replace(path)


def average(model: nn.Module, other: dict[str, torch.Tensor], batches: Batches) -> None:
    """Move `model` half-way to the weights `other`, and measure its BatchNorm statistics on one epoch of `batches`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.lerp_(other[name], 0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # a plain mean over all batches
        model.train()
        for x, _ in batches.shuffled():
            model(x)


def export(model: nn.Module, path: Path) -> None:
    """ONNX opset 18, dynamic batch, BatchNorm folded."""
    # torch's annotations of `Module.to` leave `memory_format` out.
    model = model.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model,
        (torch.zeros(2, 3, 32, 32),),
        str(path),
        input_names=["input"],
        output_names=["logits"],
        opset_version=18,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
    )
    # The exporter notes the lines of source that each node comes from, with the paths of the machine that it ran on.
    exported = onnx.load(path)
    for node in exported.graph.node:
        kept = [entry for entry in node.metadata_props if not entry.key.endswith("stack_trace")]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(exported, path)


@click.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), default=Path("data/cifar10.npz"), show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("models/resnet20-cifar10.onnx"), show_default=True)
@click.option("--depth", default=20, show_default=True, help="6n+2")
@click.option("--epochs", default=40, show_default=True)
@click.option("--batch", default=128, show_default=True)
@click.option("--lr", default=0.2, show_default=True, help="peak of the one-cycle schedule")
@click.option("--weight-decay", default=5e-4, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--fast", is_flag=True, help="bfloat16 autocast")
@click.option(
    "--start", type=click.Path(exists=True, path_type=Path), help="begin with this checkpoint, and average with it at the end"
)
@click.option("--checkpoint", type=click.Path(path_type=Path), default=None, help="default: runs/<output name>.pt")
def main(
    data: Path,
    output: Path,
    depth: int,
    epochs: int,
    batch: int,
    lr: float,
    weight_decay: float,
    seed: int,
    device: str,
    fast: bool,
    start: Path | None,
    checkpoint: Path | None,
) -> None:
    """Train, test once, export."""
    torch.manual_seed(seed)
    checkpoint = checkpoint or Path("runs") / (output.stem + ".pt")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with np.load(data) as arrays:
        split = {name: arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    classes = int(split["y_train"].max()) + 1
    train = Batches(
        split["x_train"], split["y_train"], batch=batch, mean=MEAN, std=STD,
        augmentation=Augmentation(shift=4, flip=True), device=device, seed=seed,
    )  # fmt: skip
    test = Batches(split["x_test"], split["y_test"], batch=500, mean=MEAN, std=STD, device=device)

    model = cifar_resnet(depth, classes).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    earlier: list[str] = []
    begun = None if start is None else torch.load(start, weights_only=True)
    if start is not None and begun is not None:
        model.load_state_dict(begun["model"])
        earlier = begun["commands"]
    commands = [*earlier, " ".join(["python -m tools.train_baseline", *sys.argv[1:]])]
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * len(train) + 1, pct_start=0.25)
    done = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        train.generator.set_state(state["generator"])
        done = state["epoch"]
        click.echo(f"resuming after epoch {done}")

    for epoch in range(done, epochs):
        began, total, right = time.monotonic(), 0.0, 0
        model.train()
        for x, y in train.shuffled():
            assert y is not None
            with torch.autocast(device, torch.bfloat16, enabled=fast):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
            right += int((logits.argmax(1) == y).sum())
        seen = len(train) * batch
        click.echo(
            f"epoch {epoch + 1}/{epochs} loss {total / len(train):.4f} train accuracy {100 * right / seen:.2f} "
            f"{time.monotonic() - began:.0f} s"
        )
        save(
            {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
                "generator": train.generator.get_state(), "epoch": epoch + 1, "commands": commands,
            },
            checkpoint,
        )  # fmt: skip

    if begun is not None:
        average(model, begun["model"], train)
    top1 = accuracy(model, test)
    export(model, output)
    facts = {
        "file": output.name, "sha256": hashlib.sha256(output.read_bytes()).hexdigest(), "test_accuracy": round(top1, 2),
        "test_images": test.samples, "epochs": epochs, "batch": batch, "lr": lr, "weight_decay": weight_decay, "seed": seed,
        "fast": fast, "device": device, "torch": torch.__version__, "machine": platform.machine(),
        "commands": commands,
    }  # fmt: skip
    output.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
    click.echo(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
