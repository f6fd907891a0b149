"""Scaled dot-product attention and rotary embeddings.

softmax(softcap(scale q k^T) + bias) v, for each head; q (N, H, S, D), k and v (N, H, T, D), the bias -inf where a query may
not look. Inputs of three axes hold all heads side by side: (N, S, H D).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from batude_onnx.importer.registry import Op, op
from batude_onnx.importer.view import NodeView


def _split_heads(x: Tensor, heads: int | None) -> Tensor:
    """(N, S, H D) -> (N, H, S, D)."""
    if x.dim() == 4:
        return x
    assert heads is not None
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _allowed(scores: Tensor, before: Tensor | int, left: int, right: int) -> Tensor | None:
    """Where the query at position p = before + i may look: at keys from p - left to p + right, -1 being no bound."""
    if left < 0 and right < 0:
        return None
    key = torch.arange(scores.shape[-1], device=scores.device)
    query = torch.arange(scores.shape[-2], device=scores.device).unsqueeze(1) + before
    seen = (key >= query - left) if left >= 0 else torch.ones_like(key == query)
    return seen & (key <= query + right) if right >= 0 else seen


@op("Attention", 23, 24, 25)
def attention(node: NodeView) -> Op:
    """q, k, v, mask (True: may look, or a bias), past k and v, number of keys that are no padding (N,)
    -> y, all k, all v, and the scores at one of four stages. A query that may look nowhere gives 0."""
    heads, key_heads = (node.attr_int(name) if node.given(name) else None for name in ("q_num_heads", "kv_num_heads"))
    scale, softcap = node.attr_float("scale") if node.given("scale") else None, node.attr_float("softcap", 0.0)
    causal, stage = node.attr_int("is_causal", 0) != 0, node.attr_int("qk_matmul_output_mode", 0)
    left, right = node.attr_int("left_window_size", -1), node.attr_int("right_window_size", -1)
    precise = node.torch_type("softmax_precision") if node.given("softmax_precision") else None
    if stage not in (0, 1, 2, 3):
        raise node.refuse("qk_matmul_output_mode", stage, "use 0, 1, 2 or 3")
    right = 0 if causal else right
    stages_used = node.used(3)

    def run(q: Tensor, k: Tensor, v: Tensor, *more: Tensor | None) -> tuple[Tensor, ...]:
        mask, past_key, past_value, valid = [*more, None, None, None, None][:4]
        flat = q.dim() == 3
        q, k, v = _split_heads(q, heads), _split_heads(k, key_heads), _split_heads(v, key_heads)
        before: Tensor | int = 0
        if past_key is not None and past_value is not None:
            before = past_key.shape[2]
            k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
        elif valid is not None:
            before = (valid - q.shape[2]).view(-1, 1, 1, 1)
        present = k, v
        if k.shape[1] != q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        plain = mask is None and valid is None and left < 0 and right < 0 and precise is None
        if plain and not softcap and not stages_used:
            y = F.scaled_dot_product_attention(q, k, v, scale=factor)
            return (y.transpose(1, 2).flatten(2) if flat else y, *present)
        root = math.sqrt(factor)
        stages = [(q * root) @ (k * root).transpose(-1, -2)]
        stages.append(softcap * torch.tanh(stages[0] / softcap) if softcap else stages[0])
        scores = stages[1]
        seen = _allowed(scores, before, left, right)
        if valid is not None:
            real = torch.arange(k.shape[2], device=k.device) < valid.view(-1, 1, 1, 1)
            seen = real if seen is None else seen & real
        if mask is not None:
            missing = k.shape[2] - mask.shape[-1]
            if mask.dtype is torch.bool:
                mask = F.pad(mask, (0, missing))
                seen = mask if seen is None else seen & mask
            else:
                scores = scores + F.pad(mask, (0, missing), value=-math.inf)
        if seen is not None:
            scores = scores.masked_fill(~seen, -math.inf)
        stages.append(scores)
        blind = (scores == -math.inf).all(-1, keepdim=True)
        shares = torch.softmax(scores.masked_fill(blind, 0.0).to(precise or scores.dtype), -1).to(q.dtype)
        shares = shares.masked_fill(blind, 0.0)
        stages.append(shares)
        y = shares.to(v.dtype) @ v
        return (y.transpose(1, 2).flatten(2) if flat else y, *present, stages[stage])

    return run


@op("RotaryEmbedding", 23)
def rotary_embedding(node: NodeView) -> Op:
    """x (N, H, S, D) or (N, S, H D); cos and sin (positions, d / 2) with positions (N, S), or (N, S, d / 2) without.

    Pairs (a, b) of the first d features become (a cos - b sin, a sin + b cos); a pair is two neighbours where interleaved,
    else one feature of either half.
    """
    interleaved, size = node.attr_int("interleaved", 0) != 0, node.attr_int("rotary_embedding_dim", 0)
    heads = node.attr_int("num_heads") if node.given("num_heads") else None

    def run(x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None = None) -> Tensor:
        y = _split_heads(x, heads)
        if places is not None:
            cos, sin = cos[places], sin[places]
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        turned, rest = y[..., : size or None], y[..., size or y.shape[-1] :]
        a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
        pair = (a * cos - b * sin, a * sin + b * cos)
        turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
        y = torch.cat((turned, rest), -1)
        return y if x.dim() == 4 else y.transpose(1, 2).flatten(2)

    return run
