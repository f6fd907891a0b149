"""Mini-batches of a data set as tensors, augmented and normalised a whole batch at a time.

Images rest as unsigned bytes, (N, H, W, C); a batch leaves as float32 (N, C, H, W) in channels-last memory. Everything
random comes from one `torch.Generator`, so that a run can be resumed at any epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Augmentation:
    """Random shift by up to `shift` pixels (zeros enter at the border) and, if `flip`, random horizontal mirroring."""

    shift: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """`images` (N, H, W, C) of any dtype -> the same shape and dtype."""
        n, height, width, _ = images.shape
        if not (self.shift or self.flip):
            return images
        s = self.shift
        device = images.device
        padded = torch.nn.functional.pad(images, (0, 0, s, s, s, s)) if s else images
        offsets = torch.randint(0, 2 * s + 1, (2, n, 1), generator=generator).to(device)
        rows = offsets[0] + torch.arange(height, device=device)
        columns = torch.arange(width, device=device).expand(n, width)
        if self.flip:
            mirrored = torch.rand((n, 1), generator=generator).to(device) < 0.5
            columns = torch.where(mirrored, width - 1 - columns, columns)
        columns = columns + offsets[1]
        sample = torch.arange(n, device=device)[:, None, None]
        return padded[sample, rows[:, :, None], columns[:, None, :]]


class Batches:
    """The samples of one split, ready to be iterated over epoch by epoch.

    `inputs` is either uint8 images (N, H, W, C), scaled to 0..1 and normalised by `mean` and `std`, or float32 already in the
    model's own layout and range, which is passed on untouched. `labels` is (N,) int64 or None. `whole`: no batch is ever smaller
    than `batch`, for networks that take no other; there must be samples for one.
    """

    def __init__(
        self,
        inputs: np.ndarray,
        labels: np.ndarray | None = None,
        *,
        batch: int = 128,
        mean: np.ndarray | None = None,
        std: np.ndarray | None = None,
        augmentation: Augmentation | None = None,
        device: str = "cpu",
        seed: int = 0,
        whole: bool = False,
    ) -> None:
        self.inputs = torch.from_numpy(np.ascontiguousarray(inputs)).to(device)
        self.labels = None if labels is None else torch.from_numpy(np.asarray(labels, dtype=np.int64)).to(device)
        self.batch, self.whole = batch, whole
        self.augmentation = augmentation or Augmentation()
        self.generator = torch.Generator().manual_seed(seed)
        channels = inputs.shape[-1]
        mean_values = np.zeros(channels) if mean is None else np.asarray(mean)
        std_values = np.ones(channels) if std is None else np.asarray(std)
        self._scale = torch.tensor(1.0 / (255.0 * std_values), dtype=torch.float32, device=device)
        self._offset = torch.tensor(-mean_values / std_values, dtype=torch.float32, device=device)

    def __len__(self) -> int:
        """Batches in one epoch of `shuffled` (the last, smaller one is left out when there is more than one)."""
        return max(1, len(self.inputs) // self.batch)

    def steps_in(self, epochs: float) -> int:
        """The mini-batches of a run of so many epochs, at least one."""
        return max(1, round(epochs * len(self)))

    @property
    def samples(self) -> int:
        return len(self.inputs)

    def _prepare(self, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        """The samples at `index`; augmented where there is a `generator`."""
        x = self.inputs[index]
        if x.dtype == torch.uint8:
            if generator is not None:
                x = self.augmentation(x, generator)
            x = (x.to(torch.float32) * self._scale + self._offset).permute(0, 3, 1, 2)
        return x, None if self.labels is None else self.labels[index]

    def shuffled(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """One epoch in a new random order, augmented."""
        order = torch.randperm(len(self.inputs), generator=self.generator).to(self.inputs.device)
        for k in range(len(self)):
            yield self._prepare(order[k * self.batch : (k + 1) * self.batch], self.generator)

    @contextmanager
    def undrawn(self) -> Iterator[None]:
        """What is drawn inside of it will be drawn again."""
        state = self.generator.get_state()
        try:
            yield
        finally:
            self.generator.set_state(state)

    def sample(self, count: int, seed: int = 0) -> list[Tensor]:
        """The inputs of `count` samples drawn at random (all of them where there are fewer), as they are, in batches."""
        drawn = self._drawn(count, torch.Generator().manual_seed(seed))
        return [self._prepare(index, None)[0] for index in drawn]

    def trial(self, count: int, seed: int = 0) -> list[tuple[Tensor, Tensor | None]]:
        """As `sample`, but as they come in training: augmented, with their labels. It takes no part in what training draws."""
        generator = torch.Generator().manual_seed(seed)
        return [self._prepare(index, generator) for index in self._drawn(count, generator)]

    def _drawn(self, count: int, generator: torch.Generator) -> list[Tensor]:
        drawn = torch.randperm(len(self.inputs), generator=generator)[:count].to(self.inputs.device)
        end = len(drawn) // self.batch * self.batch if self.whole else len(drawn)
        return [drawn[k : min(k + self.batch, end)] for k in range(0, end, self.batch)]

    def in_order(self, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Every sample once (the first `limit` of them), as it is."""
        n = len(self.inputs) if limit is None else min(limit, len(self.inputs))
        index = torch.arange(n, device=self.inputs.device)
        for k in range(0, n, self.batch):
            yield self._prepare(index[k : k + self.batch], None)


def takes_any_batch(net: nn.Module, samples: np.ndarray) -> bool:
    """Whether `net`, whose file fixes the batch at `len(samples)` or a divisor of it, computes each sample by itself.

    Such a file often differs from one with an open batch by nothing but the number that is written down. Twice the samples are
    run at once: a reshape to a fixed size then fails, or mixes samples up.
    """
    x = torch.from_numpy(samples).to(next(net.parameters()).device)
    net.eval()
    with torch.no_grad():
        try:
            once, twice = net(x[:1]), net(torch.cat([x.flip(0), x]))
        except RuntimeError:  # torch's own, for sizes that do not fit
            return False
    return all(
        len(b) == 2 * len(x) and torch.allclose(a, b[len(x) : len(x) + 1], rtol=1e-3, atol=1e-4)
        for a, b in zip(once, twice, strict=True)
    )
