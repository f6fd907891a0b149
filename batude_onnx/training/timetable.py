"""A run that must end at a given time: how long training may take, and about how many epochs that is."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from batude_onnx.importer import GraphNet
from batude_onnx.training.batches import Batches
from batude_onnx.training.loop import channels_last, step_of
from batude_onnx.training.recipe import Recipe

TIMED = 4


@dataclass(frozen=True)
class Timetable:
    """`began` is on the clock of `time.monotonic`; the run may take `seconds`; the last `reserved` of them are not training's."""

    began: float
    seconds: float
    reserved: float

    def left(self) -> float:
        """Seconds that training has from now on; 0 where there are none."""
        return max(0.0, self.began + self.seconds - self.reserved - time.monotonic())


def seconds_per_epoch(net: GraphNet, teacher: GraphNet, batches: Batches, recipe: Recipe, keys: Sequence[str]) -> float:
    """The time of a pass over the data, from a few mini-batches on a copy of `net`; data come in the same order afterwards."""
    trial = copy.deepcopy(net).train(recipe.restore)
    channels_last(trial)
    channels_last(teacher)
    teacher.eval()
    times = []
    with batches.undrawn():
        for x, labels in islice(batches.shuffled(), TIMED):
            began = time.monotonic()
            loss, *_ = step_of(trial, teacher, recipe.objective, x, labels, keys)
            loss.backward()  # type: ignore[no-untyped-call]
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            times.append(time.monotonic() - began)
    # The first one also pays for memory and for kernels being chosen.
    return len(batches) * min(times)
