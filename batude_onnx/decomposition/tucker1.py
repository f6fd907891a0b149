"""Tucker-1: a KxK convolution as KxK and 1x1 (Zhang et al., Accelerating very deep convolutional networks, PAMI 2016).

    W(s,c,i,j) = sum over r of B(s,r) Core(r,c,i,j)

    KxK conv C -> R (Core, with the stride, pads and dilation), 1x1 conv R -> S (B, with the bias).

What Tucker-2 is where its input rank is full, without a factor that does nothing: for a layer with few channels in front, as the
first of a network has. Its one rank is that of the output's unfolding.
"""

from __future__ import annotations

from batude_onnx.decomposition.narrowing import narrowing
from batude_onnx.decomposition.registry import has_core, register

METHOD = register(narrowing("tucker1", (), has_core))
