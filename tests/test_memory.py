"""Memory that stays with the process while it trains."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from batude_onnx.training import memory

# A process of its own: in another thread than the main one glibc keeps no block as large, and tests may run in such.
SCRIPT = """
import resource
import torch
from batude_onnx.training import memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(80 * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20

usual = faults()
with memory.kept():
    faults()
    kept, held = faults(), resident()
print(usual, kept, held - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's way with memory")
def test_memory_stays_only_while_it_is_kept() -> None:
    """Pages that the system clears for ten tensors of 80 MB, and megabytes that are given back at the end."""
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout.split()
    usual, kept, freed = map(float, found)
    assert usual > 1000
    assert kept < 0.1 * usual
    assert freed > 40


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory, "_set", lambda *_: pytest.fail("mallopt is glibc's"))
    with memory.kept():
        assert torch.ones(3).sum() == 3
