"""A small network that has really been trained, on a slice of CIFAR-10, and exported as users do."""

from __future__ import annotations

import os
from pathlib import Path

# Tensors of tests gain nothing by a second thread, and where another process keeps its core busy the first waits for it: up to
# fifty times as long. Read as torch is loaded, here and in what tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.networks import export

SLICE = Path(__file__).parent / "data" / "cifar10_slice.npz"
STEPS, BATCH = 60, 64


def _network() -> nn.Sequential:
    """3x3, strided 3x3, 1x1 with BatchNorm, then a linear layer: 17,000 parameters."""
    layers: list[nn.Module] = []
    for into, out, kernel, stride in ((3, 16, 3, 1), (16, 32, 3, 2), (32, 32, 3, 2), (32, 64, 1, 1)):
        conv = nn.Conv2d(into, out, kernel, stride, kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


@pytest.fixture(scope="session")
def cifar_slice() -> Path:
    """320 training and 160 test images with labels."""
    return SLICE


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as an ONNX file of opset 18, BatchNorm folded, batch open: x (N, 3, 32, 32) -> y (N, 10)."""
    with np.load(SLICE) as data:
        images, labels, mean, std = (data[key] for key in ("x_train", "y_train", "mean", "std"))
    x = torch.from_numpy(((images / 255.0 - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    y = torch.from_numpy(labels.astype(np.int64))
    torch.manual_seed(0)
    network = _network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(0, len(x), (BATCH,))
        loss = nn.functional.cross_entropy(network(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    path = tmp_path_factory.mktemp("trained") / "small.onnx"
    onnx.save(export(network.eval(), 18), path)
    return path
