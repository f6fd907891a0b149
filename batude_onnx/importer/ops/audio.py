"""Fourier transforms, windows and mel weights, as audio front ends use them.

A complex number is a last axis of two: real and imaginary part; a real signal has a last axis of one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView, listed


def _complex(x: Tensor) -> Tensor:
    """(..., 1 or 2) -> complex (...)."""
    return torch.view_as_complex(F.pad(x, (0, 2 - x.shape[-1])).contiguous())


def _wide(x: Tensor) -> Tensor:
    """In a type that torch's transforms know; on a CPU that is no half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _dft(node: NodeView, fixed_axis: list[int] | None) -> Op:
    """x (..., 1 or 2), dft_length, axis -> (..., 2); zero-padded or cut to the length. One-sided: only the first half is
    kept, or, for the inverse, is what comes in, and the result (..., 1) is real."""
    inverse, onesided = node.attr_int("inverse", 0) != 0, node.attr_int("onesided", 0) != 0
    lengths = node.integers(1)

    def run(x: Tensor, length: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
        (at,) = listed(fixed_axis, axis) if fixed_axis is not None or axis is not None else [-2]
        at = at % x.dim()
        wanted = listed(lengths, length)[0] if lengths is not None or length is not None else None
        wide = _wide(x)
        if inverse and onesided:
            real: Tensor = torch.fft.irfft(_complex(wide), wanted, at)
            return real.unsqueeze(-1).to(x.dtype)
        if inverse:
            y = torch.fft.ifft(_complex(wide), wanted, at)
        elif onesided and x.shape[-1] == 1:
            y = torch.fft.rfft(wide.squeeze(-1), wanted, at)
        else:
            y = torch.fft.fft(_complex(wide), wanted, at)
            if onesided:
                y = y.narrow(at, 0, y.shape[at] // 2 + 1)
        return torch.view_as_real(y).to(x.dtype)

    return run


@op("DFT", 17, host=(1,))
def dft_attribute(node: NodeView) -> Op:
    return _dft(node, [node.attr_int("axis", 1)])


@op("DFT", 20, host=(1, 2))
def dft(node: NodeView) -> Op:
    return _dft(node, node.integers(2))


@op("STFT", 17, host=(1, 3))
def stft(node: NodeView) -> Op:
    """x (N, samples, 1 or 2), step, window (length,), length -> (N, frames, bins, 2)."""
    onesided = node.attr_int("onesided", 1) != 0
    steps, lengths = node.integers(1), node.integers(3)

    def run(x: Tensor, step: Tensor | None, window: Tensor | None = None, length: Tensor | None = None) -> Tensor:
        # onnxruntime takes a signal without an axis for its parts, too, as one of torch's exporters writes it.
        x = x[..., None] if x.ndim == 2 else x
        size = x.shape[1] if window is None else window.shape[0]
        if lengths is not None or length is not None:
            (size,) = listed(lengths, length)
        frames = x.transpose(1, 2).unfold(2, size, listed(steps, step)[0])
        if window is not None:
            frames = frames * window
        # (N, 1 or 2, frames, length) -> (N, frames, length, 1 or 2).
        parts = _wide(frames.permute(0, 2, 3, 1))
        y = torch.fft.rfft(parts.squeeze(-1)) if onesided and x.shape[-1] == 1 else torch.fft.fft(_complex(parts))
        return torch.view_as_real(y if not onesided else y[..., : size // 2 + 1]).to(x.dtype)

    return run


def _window(name: str, *weights: float) -> None:
    """sum over k of (-1)^k weights[k] cos(2 pi k n / N), N being the size, or one less where it is not periodic."""

    def convert(node: NodeView) -> Op:
        dtype = _output_type(node)
        fixed, periodic = node.integers(0), node.attr_int("periodic", 1) != 0

        def run(given: Tensor | None) -> Tensor:
            (size,) = listed(fixed, given)
            angle = 2 * math.pi * torch.arange(size, dtype=torch.float64) / (size if periodic else max(size - 1, 1))
            terms = [(-1) ** k * weight * torch.cos(k * angle) for k, weight in enumerate(weights)]
            return torch.stack(terms).sum(0).to(dtype)

        return run

    op(name, 17, host=(0,))(convert)


def _output_type(node: NodeView) -> torch.dtype:
    return node.torch_type("output_datatype") if node.given("output_datatype") else torch.float32


_window("HannWindow", 0.5, 0.5)
_window("HammingWindow", 25 / 46, 21 / 46)
_window("BlackmanWindow", 0.42, 0.5, 0.08)


@op("MelWeightMatrix", 17, host=(0, 1, 2, 3, 4))
def mel_weights(node: NodeView) -> Op:
    """-> (dft_length // 2 + 1, bands): triangles between neighbouring edges, which are evenly spaced on the mel scale.

    mel(f) = 2595 log10(1 + f / 700). The edges are rounded down to bins, and spaced by 1 / (bands + 2) of the range, as in
    onnxruntime and in ONNX's own reference.
    """
    dtype = _output_type(node)

    def run(*given: Tensor) -> Tensor:
        bands, length, rate = (int(value.item()) for value in given[:3])
        low, high = (2595 * math.log10(1 + value.item() / 700) for value in given[3:])
        mels = low + torch.arange(bands + 2, dtype=torch.float64) * (high - low) / (bands + 2)
        edges = ((length + 1) * 700 * (10 ** (mels / 2595) - 1) / rate).floor()
        bins = torch.arange(length // 2 + 1, dtype=torch.float64).unsqueeze(1)
        left, centre, right = edges[:-2], edges[1:-1], edges[2:]
        rising = torch.where(centre > left, (bins - left) / (centre - left).clamp(min=1), 1.0)
        falling = (right - bins) / (right - centre).clamp(min=1)
        inside = (bins >= left) & (bins <= centre)
        beyond = (bins > centre) & (bins < right)
        return (torch.where(inside, rising, 0.0) + torch.where(beyond, falling, 0.0)).to(dtype)

    return run
