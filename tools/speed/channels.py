"""A peer that removes channels: torch-pruning (Fang et al., CVPR 2023), held to a measured latency.

The network is the project's CIFAR ResNet. Its shortcuts have no parameters, so that only channels within a block can go, as in
Li et al., ICLR 2017. Which channels go is the package's own affair; how they are counted out is tried in several ways, and the
one that leaves the lowest loss on training images is taken.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import onnx_ir as ir
import torch
import torch_pruning
from torch import Tensor, nn

from tools.networks import BasicBlock, CifarResNet, cifar_resnet
from tools.train_baseline import export

STEPS = 7


@dataclass(frozen=True)
class Way:
    """How a pruner counts channels out: over all layers at once or the same share of each, and to multiples of what."""

    everywhere: bool
    multiple: int

    def __str__(self) -> str:
        return f"{'global' if self.everywhere else 'uniform'}, multiples of {self.multiple}"


WAYS = tuple(Way(everywhere, multiple) for everywhere, multiple in product((False, True), (4, 8, 16)))


def dense(path: Path, depth: int = 20) -> CifarResNet:
    """The network behind an ONNX file that `tools/train_baseline.py` has written, its BatchNorms folded away there."""
    held = {name: value.const_value for name, value in ir.load(path).graph.initializers.items()}

    def tensor(name: str) -> Tensor:
        found = held[name]
        assert found is not None
        return torch.from_numpy(found.numpy().copy())

    net = cifar_resnet(depth)
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            owner, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(owner), leaf, nn.Identity())
        elif isinstance(module, nn.Conv2d):
            module.weight.data = tensor(f"{name}.weight")
            module.bias = nn.Parameter(tensor(f"{name}.weight_bias"))
    net.fc.weight.data, net.fc.bias.data = tensor("fc.weight"), tensor("fc.bias")
    return net.eval()


def pruned(net: CifarResNet, way: Way, share: float) -> CifarResNet:
    """A copy of `net` without this share of the channels that may go, by the norms of their groups."""
    thin = copy.deepcopy(net)
    kept: list[nn.Module] = [thin.conv1, thin.fc]
    kept += [module.conv2 for module in thin.modules() if isinstance(module, BasicBlock)]
    torch_pruning.pruner.BasePruner(
        thin,
        torch.zeros(1, 3, 32, 32),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=way.everywhere,
        pruning_ratio=share,
        max_pruning_ratio=0.95,
        round_to=way.multiple,
        ignored_layers=kept,
    ).step()
    return thin


def to_speed(net: CifarResNet, way: Way, wanted: float, path: Path, speed: Callable[[Path], float]) -> CifarResNet | None:
    """The least that is pruned so that the file at `path` is `wanted` times as fast, by bisection; None where nothing does it."""
    low, high = 0.0, 0.95
    best: CifarResNet | None = None
    for _ in range(STEPS):
        middle = (low + high) / 2
        thin = pruned(net, way, middle)
        export(thin, path)
        if speed(path) >= wanted:
            best, high = thin, middle
        else:
            low = middle
    if best is not None:
        export(best, path)
    return best
