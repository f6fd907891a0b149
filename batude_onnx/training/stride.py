"""How long steps may be for a network that starts near to where it shall go.

Steps that suit a far start throw a near one out of what the fit in closed form gave, and long runs do not win it back. How long
they may be is found by trying: on a copy, steps grow from very short ones in a geometric series (the range test of Smith, WACV
2017), until the copy's loss is above the start's on the same mini-batches.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain, islice, repeat

import torch

from batude_onnx.importer import GraphNet
from batude_onnx.training.batches import Batches
from batude_onnx.training.loop import channels_last, step_of
from batude_onnx.training.optimizers import at_rate, optimizers
from batude_onnx.training.recipe import Phase, Recipe

# As many steps as are tried, at most this part of the run's, from this share of the longest to it.
TRIED, TRIED_LEAST, PART = 64, 16, 0.1
SHORTEST = 1 / 128
# Losses are averaged over about so many mini-batches; the trial ends where the copy's is so many times the start's.
WINDOW, LOST = 5, 1.5


def share_of(
    net: GraphNet, teacher: GraphNet, batches: Batches, recipe: Recipe, phase: Phase, *, steps: int, keys: Sequence[str]
) -> float:
    """The share, at most 1, of the peak rates of `phase` that makes its steps `phase.within` times as long as the longest that do
    not raise the loss of `net`. The run has `steps` mini-batches.

    `net` stays as it is, and data come in the same order afterwards.
    """
    if not phase.within:
        return 1.0
    longest = phase.peak(steps) / phase.within
    tried = max(TRIED_LEAST, min(TRIED, round(PART * steps)))
    moved, start = (copy.deepcopy(net).train(recipe.restore) for _ in range(2))
    for each in (moved, start, teacher):
        channels_last(each)
    teacher.eval()
    movers = optimizers(moved, phase.lr, phase.turn, recipe.momentum, recipe.nesterov, recipe.weight_decay)
    borne, losses = SHORTEST, [0.0, 0.0]
    with batches.undrawn():
        for k, (x, labels) in enumerate(islice(chain.from_iterable(batches.shuffled() for _ in repeat(None)), tried)):
            now = SHORTEST ** (1 - k / (tried - 1))
            loss, *_ = step_of(moved, teacher, recipe.objective, x, labels, keys)
            with torch.no_grad():
                before, *_ = step_of(start, teacher, recipe.objective, x, labels, keys)
            moved.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            at_rate(movers, now * longest)
            for mover in movers:
                mover.step()
            losses = [
                mean + (float(one.detach()) - mean) / min(k + 1, WINDOW) for mean, one in zip(losses, (loss, before), strict=True)
            ]
            ratio = losses[0] / max(losses[1], 1e-12)
            if not ratio < LOST:
                break
            if ratio <= 1.0:
                borne = now
    return borne
