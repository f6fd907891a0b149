"""Small networks with the building blocks of the well-known ones, and their export to ONNX; inputs are (N, 3, 32, 32)."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResNet(nn.Module):
    """Basic and bottleneck blocks, option-A (slice and pad) and projection shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 8, 3)
        self.block = nn.Sequential(_conv(8, 8, 3), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.widen = nn.Sequential(_conv(8, 16, 3, stride=2), nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.bottleneck = nn.Sequential(_conv(16, 8, 1), _conv(8, 8, 3, stride=2), nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32))
        self.shortcut = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        x = F.relu(x + self.block(x))
        x = F.relu(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) + self.widen(x))
        x = F.relu(self.shortcut(x) + self.bottleneck(x))
        y: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return y


class VGG(nn.Module):
    """Convolutions with biases, max pooling, a head of linear layers with dropout, log-softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(16, 16, 3, padding=2, dilation=2),
            nn.PReLU(16),
            nn.AvgPool2d(2),
        )
        self.head = nn.Sequential(nn.Linear(16 * 4 * 4, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 10), nn.LogSoftmax(1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.features(x).flatten(1))
        return y


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class MobileNet(nn.Module):
    """Depthwise-separable and inverted residual blocks, ReLU6, hard-swish, SiLU, squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 8, 3, stride=2, act=nn.Hardswish)
        self.separable = nn.Sequential(_conv(8, 8, 3, groups=8, act=nn.ReLU6), _conv(8, 12, 1, act=nn.ReLU6))
        self.inverted = nn.Sequential(
            _conv(12, 24, 1, act=nn.SiLU),
            _conv(24, 24, 5, groups=24, act=nn.Hardswish),
            SqueezeExcite(24),
            nn.Conv2d(24, 12, 1, bias=False),
            nn.BatchNorm2d(12),
        )
        self.head = nn.Conv2d(12, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.separable(self.stem(x))
        x = self.head(x + self.inverted(x))
        return F.adaptive_avg_pool2d(x, 1).view(x.shape[0], -1)


class UNet(nn.Module):
    """Two ways up (transposed convolution; bilinear and nearest resizing), joined with what came down."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.down3 = _conv(3, 8, 3), _conv(8, 12, 3), _conv(12, 16, 3)
        self.up2 = nn.ConvTranspose2d(16, 12, 2, 2)
        self.norm2, self.merge2 = nn.GroupNorm(4, 24), _conv(24, 12, 3)
        self.merge1 = _conv(20, 8, 3)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.down3(F.max_pool2d(b, 2))
        b = self.merge2(self.norm2(torch.cat([self.up2(c), b], 1)))
        up = F.interpolate(b, scale_factor=2, mode="bilinear", align_corners=False)
        a = self.merge1(torch.cat([up, F.interpolate(a, size=(32, 32), mode="nearest")], 1))
        return torch.sigmoid(self.out(a))


class DenseNet(nn.Module):
    """Normalisation before convolution, concatenated features, transitions by average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 4 * i), nn.ReLU(), nn.Conv2d(8 + 4 * i, 4, 3, 1, 1, bias=False)) for i in range(3)
        )
        self.transition = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1, bias=False), nn.AvgPool2d(2))
        self.fc = nn.Linear(10, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        y: Tensor = self.fc(self.transition(x).mean((2, 3)))
        return y.softmax(-1)


class Inception(nn.Module):
    """Fire modules and factorised branches (1x7, 7x1), padded average pooling, chunked and shuffled channels, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.one, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, padding=1)
        self.row, self.column = nn.Conv2d(16, 8, (1, 7), padding=(0, 3)), nn.Conv2d(8, 8, (7, 1), (2, 2), padding=(3, 0))
        self.norm, self.query = nn.LayerNorm(16), nn.Linear(16, 16)
        self.out = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        x = torch.cat([F.elu(self.one(x)), F.softplus(self.three(x))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        left, right = self.column(self.row(x)).chunk(2, 1)
        pooled = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)[:, :8]
        x = torch.cat([left * right.tanh(), left - right, pooled], 1)
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        weights = torch.softmax(self.query(tokens) @ tokens.transpose(1, 2) / 4.0, -1)
        y: Tensor = self.out(F.gelu(weights @ tokens).mean(1))
        return y


def _conv(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1, act: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), act())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": ResNet,
    "vgg": VGG,
    "mobilenet": MobileNet,
    "unet": UNet,
    "densenet": DenseNet,
    "inception": Inception,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A network in evaluation mode whose BatchNorm statistics are not the trivial ones."""
    torch.manual_seed(seed)
    network = NETWORKS[name]().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 2.0)):
                assert tensor is not None
                nn.init.uniform_(tensor, low, high)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return network


def export(network: nn.Module, opset: int, *, fold: bool = False, dynamo: bool | None = None) -> onnx.ModelProto:
    """The network as ONNX with a dynamic batch: by torch's newer exporter from opset 18 on, by the older one before.

    `fold` lets the exporter fold BatchNorm into the convolutions. The newer exporter always does so.
    """
    x = torch.zeros(2, 3, 32, 32)
    with warnings.catch_warnings():
        # The older exporter is deprecated, but it is the one that most existing files come from.
        warnings.simplefilter("ignore")
        if opset >= 18 if dynamo is None else dynamo:
            batch = torch.export.Dim("batch")
            program = torch.onnx.export(
                network,
                (x,),
                dynamo=True,
                opset_version=opset,
                input_names=["x"],
                output_names=["y"],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
            assert program is not None
            model = ir.to_proto(program.model)
        else:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "network.onnx"
                torch.onnx.export(
                    network,
                    (x,),
                    file,
                    dynamo=False,
                    opset_version=opset,
                    input_names=["x"],
                    output_names=["y"],
                    dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
                    do_constant_folding=fold,
                    training=torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE,
                )
                model = onnx.load(file)
    assert isinstance(model, onnx.ModelProto)
    return model
