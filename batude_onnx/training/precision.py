"""In which arithmetic the passes of training run; weights, gradients' sums and statistics stay float32.

bfloat16 where the hardware multiplies it natively (AVX-512-BF16, AMX, CUDA from compute capability 8.0 on): 1.6 times the
images a second of float32 on two AVX-512 cores. Elsewhere it would be emulated, and slower than float32. The rule asks what the
machine has and measures nothing, so that the same seed gives the same file again.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

# The names that torch gives to the instructions.
_NATIVE = ("avx512_bf16", "amx_bf16")


def native_bfloat16(device: str) -> bool:
    """Whether `device` multiplies bfloat16 faster than float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if kind != "cpu":
        return False
    # Not there in older torch.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in _NATIVE)


def autocast(device: str) -> AbstractContextManager[Any]:
    """Passes inside run in the fastest arithmetic of `device`. Outputs may be bfloat16."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=native_bfloat16(device))
