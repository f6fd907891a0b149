"""What a user asks for, and what a run says while it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from batude_onnx.records import Wishes

if TYPE_CHECKING:
    from batude_onnx.training.loop import Progress

# What one run gets where nothing is asked for. On CIFAR-10 and two cores it is about ten minutes for a ResNet-20.
DEFAULT_EPOCHS = 5.0


@dataclass(frozen=True)
class Source:
    """The data: a file, and how its images become the model's input.

    `mean`, `std`: of images scaled to 0..1, one value a channel; None takes the file's own. `limit`: training samples used.
    `augment`: whether images are shifted by up to an eighth of their height and, with three channels, mirrored.
    """

    path: Path
    limit: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: bool = True


@dataclass(frozen=True)
class LayerWishes:
    """What is asked for single layers, by patterns of their names (of the node, or of its first output) as file names have them.

    `include`: no other layers are compressed. `exclude`: these are not. `ranks`: the ranks of these, None for whole. `least`: no
    rank of these is smaller. The first pattern that fits a layer counts.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    ranks: Mapping[str, tuple[int, ...] | None] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """One `compress` run. `budget`: as on the command line, several limits with commas between. `rank_multiple`: ranks are
    multiples of it; None takes what suits the runtime and the budget. `batch`: samples in a run whose time is limited. `inputs`:
    what is asked of inputs that are made up, and of sizes that the file leaves open.

    `layers`: what is asked for single layers; `plan`: a file whose ranks are taken, and whose budget where none is given.

    `seconds`: the wall-clock time that the run may take; as much is trained as fits into it, in the place of `epochs`.
    """

    model: Path
    output: Path
    budget: str
    data: Source | None = None
    epochs: float = DEFAULT_EPOCHS
    seconds: float | None = None
    recipe: str = "default"
    seed: int = 0
    device: str = "cpu"
    provider: str = "cpu"
    threads: int | None = None
    batch: int = 1
    rank_multiple: int | None = None
    simplify: bool = True
    inputs: Wishes = field(default_factory=Wishes)
    layers: LayerWishes = field(default_factory=LayerWishes)
    plan: Path | None = None


class Watch:
    """Told what a run does; this one says nothing."""

    def say(self, text: str) -> None:
        """A line worth reading."""

    def count(self, what: str, done: int, total: int) -> None:
        """`done` of `total` things of a stage are finished."""

    def train(self, progress: Progress) -> None:
        """After each mini-batch."""
