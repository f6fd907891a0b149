"""In which arithmetic the passes of training run; weights, gradients' sums and statistics stay float32.

bfloat16 where the hardware multiplies it natively (AVX-512-BF16, AMX, CUDA from compute capability 8.0 on): 1.6 times the
images a second of float32 on two AVX-512 cores. Elsewhere it would be emulated, and slower than float32. The rule asks what the
machine has and measures nothing, so that the same seed gives the same file again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# The names that torch gives to the instructions.
_NATIVE = ("avx512_bf16", "amx_bf16")
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


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


@contextmanager
def autocast(device: str) -> Iterator[None]:
    """Passes inside run in the fastest arithmetic of `device`. Outputs may be bfloat16."""
    kind, native = torch.device(device).type, native_bfloat16(device)
    exceptions = _StridedDepthwise() if native and kind == "cpu" else nullcontext()
    with torch.autocast(kind, torch.bfloat16, enabled=native), exceptions:
        yield


class _StridedDepthwise(TorchFunctionMode):
    """Runs depthwise convolutions with a stride in float32: oneDNN has no fast gradient of these in bfloat16, and its slow one
    takes 15 to 25 times as long, which was a third of all training of ResNet-20 with CP."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CONVOLUTIONS and not kwargs and len(args) == 7:
            x, weight, bias, strides, pads, dilations, groups = args
            if groups > 1 and weight.shape[1] == 1 and any(stride > 1 for stride in strides):
                with torch.autocast("cpu", enabled=False):
                    return func(x.float(), weight.float(), _float(bias), strides, pads, dilations, groups)
        return func(*args, **(kwargs or {}))


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()
