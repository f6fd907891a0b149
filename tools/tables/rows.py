"""What stands in the tables: models, budgets, methods, seeds; and the paper's own figures, with which they are compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Model:
    """A network to compress: `file` is relative to the project's root, or to the folder given with `--models`.

    `pictures`: a folder beside the data, where the network is scored by PSNR on pictures instead of by accuracy.
    """

    name: str
    title: str
    data: str
    file: Path
    pictures: str | None = None


@dataclass(frozen=True)
class Target:
    """One line of the paper's tables (Yin et al., AAAI 2022, Tables 1 and 2): top-1 accuracy in % at a params budget."""

    model: str
    budget: str
    baseline: float
    compressed: float

    @property
    def change(self) -> float:
        return round(self.compressed - self.baseline, 2)


@dataclass(frozen=True)
class Row:
    """One run. `limit`: training samples used, None for all; with 0 epochs nothing is trained. `metric`: the budget's."""

    model: str
    budget: str
    method: str
    epochs: float
    seed: int
    limit: int | None = None
    metric: str = "params"

    @property
    def name(self) -> str:
        """Of its file under results/."""
        return f"{self.model}-{self.budget}-{self.method}-{self.epochs:g}epochs-seed{self.seed}"


MODELS = {
    model.name: model
    for model in (
        Model("resnet20-c10", "ResNet-20, CIFAR-10", "cifar10", Path("cifar10_resnet20.onnx")),
        Model("resnet32-c10", "ResNet-32, CIFAR-10", "cifar10", Path("cifar10_resnet32.onnx")),
        Model("resnet20-c100", "ResNet-20, CIFAR-100", "cifar100", Path("models/resnet20-cifar100.onnx")),
        Model(
            "resnet20-dev", "ResNet-20, CIFAR-10 without held-out images", "cifar10-dev", Path("models/resnet20-cifar10-dev.onnx")
        ),
        Model("resnet32-c100", "ResNet-32, CIFAR-100", "cifar100", Path("models/resnet32-cifar100.onnx")),
        Model("vdsr", "VDSR, Set5 x2", "patches", Path("sr_vdsr.onnx"), "set5"),
    )
}

PAPER = (
    Target("resnet20-c10", "2.6x", 91.25, 91.02),
    Target("resnet20-c10", "6.8x", 91.25, 89.47),
    Target("resnet32-c10", "2.8x", 92.49, 92.18),
    Target("resnet32-c10", "5.8x", 92.49, 91.47),
    Target("resnet20-c100", "2.8x", 65.4, 66.67),
    Target("resnet20-c100", "4.7x", 65.4, 64.91),
    Target("resnet32-c100", "2.6x", 68.10, 68.95),
    Target("resnet32-c100", "5.2x", 68.10, 66.96),
)

METHODS = ("std-tucker", "vbmf", "admm-tucker", "paper", "batude", "no-cp", "default")
# The default recipe, and the same as it was before layers could be factored by CP and BatchNorms kept their statistics.
DEFAULTS = ("default", "no-cp")
SHORT, LONG = 10.0, 40.0
# Of the pictures on which super-resolution is scored.
SCALE = 2

# In the order in which they are run: the ones that say most come first.
ROWS = (
    *(Row("resnet20-c10", budget, method, 0.0, 0, 600) for method in DEFAULTS for budget in ("1.5x", "2x", "2.6x")),
    *(
        Row("vdsr", budget, method, epochs, 0, None, "macs")
        for method in DEFAULTS
        for epochs in (0.0, 1.0)
        for budget in ("2x", "3x")
    ),
    *(Row("resnet20-c10", "2.6x", method, SHORT, seed) for seed in (0, 1) for method in reversed(METHODS)),
    *(Row("resnet20-c10", "6.8x", method, SHORT, seed) for seed in (0, 1) for method in DEFAULTS),
    *(Row(target.model, target.budget, "default", LONG, 0) for target in PAPER),
    Row("resnet20-c10", "2.6x", "no-cp", LONG, 0),
    Row("resnet20-c10", "6.8x", "restored", LONG, 0),
)
