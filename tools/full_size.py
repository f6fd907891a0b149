"""Networks for 224x224 images, with random weights: for speed, ranks and memory, never for accuracy.

python -m tools.full_size resnet18 build/resnet18.onnx
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE, CLASSES = 224, 1000


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(channels_out)
    )


class Block(nn.Module):
    """A residual block (He et al., CVPR 2016): two 3x3 convolutions, or with `widening` 4 a bottleneck of three."""

    def __init__(self, channels_in: int, width: int, stride: int, widening: int) -> None:
        super().__init__()
        wide = width * widening
        if widening == 1:
            parts = [_conv(channels_in, width, 3, stride), nn.ReLU(), _conv(width, width, 3)]
        else:
            parts = [_conv(channels_in, width, 1), nn.ReLU(), _conv(width, width, 3, stride), nn.ReLU(), _conv(width, wide, 1)]
        self.body = nn.Sequential(*parts)
        same = stride == 1 and channels_in == wide
        self.shortcut: nn.Module = nn.Identity() if same else _conv(channels_in, wide, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet(blocks: tuple[int, ...], widening: int) -> nn.Sequential:
    """A ResNet of four stages; `widening` is 1 for basic blocks, 4 for bottlenecks."""
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    into = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for number in range(count):
            layers.append(Block(into, width, 2 if stage and not number else 1, widening))
            into = width * widening
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, CLASSES))


def vgg16() -> nn.Sequential:
    """VGG-16 (Simonyan & Zisserman, ICLR 2015, configuration D)."""
    layers: list[nn.Module] = []
    into = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(into, width, 3, padding=1), nn.ReLU()]
            into = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4096, CLASSES))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: resnet((2, 2, 2, 2), 1),
    "resnet50": lambda: resnet((3, 4, 6, 3), 4),
    "vgg16": vgg16,
}


def export(name: str, path: Path, seed: int = 0) -> None:
    """Write the network of that name, with weights of that `seed`, BatchNorm folded by the exporter."""
    torch.manual_seed(seed)
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    torch.onnx.export(
        network.eval(),
        (torch.zeros(1, 3, SIDE, SIDE),),
        path,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )


@click.command()
@click.argument("name", type=click.Choice(sorted(NETWORKS)))
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
def main(name: str, path: Path, seed: int) -> None:
    """Write one network as ONNX."""
    path.parent.mkdir(parents=True, exist_ok=True)
    export(name, path, seed)


if __name__ == "__main__":
    main()
