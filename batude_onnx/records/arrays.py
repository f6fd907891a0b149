"""Arrays, and many of them that are not all in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Computed(Mapping[str, T]):
    """A mapping whose values are made each time they are asked for, as all of them at once would be too much."""

    names: tuple[str, ...]
    make: Callable[[str], T]

    def __getitem__(self, name: str) -> T:
        if name not in self.names:
            raise KeyError(name)
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
