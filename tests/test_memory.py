"""Memory that stays with the process while it trains."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from batude_onnx.training import memory

resource = pytest.importorskip("resource")
MEGABYTES = 80


def faults() -> int:
    """How many pages the system had to clear for making a large tensor ten times."""
    before: int = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(MEGABYTES * 2**18)
    found: int = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return found - before


def resident() -> float:
    """Megabytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * float(resource.getpagesize()) / 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's way with memory")
def test_memory_stays_only_while_it_is_kept() -> None:
    usual = faults()
    assert usual > 10 * MEGABYTES
    with memory.kept():
        faults()
        assert faults() < 0.1 * usual
        held = resident()
    assert resident() < held - 0.5 * MEGABYTES


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory, "_set", lambda *_: pytest.fail("mallopt is glibc's"))
    with memory.kept():
        assert torch.ones(3).sum() == 3
