"""Attention in two halves: the map before tokens are fused, and what it does with the values of the fused ones."""

import torch
from timm.layers import Attention
from torch import Tensor, nn

from vitalk.nn.attention import SiteAttention
from vitalk.nn.quant import QuantLinear
from vitalk.vision.merging import Merge
from vitalk.vision.tokens import flat, take


def attention_map(attn: Attention, x: Tensor, size: Tensor | None) -> Tensor:
    """The attention map of ``attn`` alone, without values: x [batch, tokens, dim] -> [batch, heads, tokens, tokens].

    size: [batch, tokens], by which keys are weighted (``vitalk.vision.tokens.attend``); None for all alike.
    """
    q, k = (_heads(attn, part) for part in _project(attn.qkv, x, 0, 2 * attn.attn_dim).chunk(2, -1))
    scores = _product(attn, 0)(attn.q_norm(q) * attn.scale, attn.k_norm(k).transpose(-2, -1))
    if size is not None:
        scores += size.log().to(scores.dtype)[:, None, None]
    return scores.softmax(-1)


def attend_ahead(attn: Attention, x: Tensor, attention: Tensor, merge: Merge, weight: Tensor | None) -> Tensor:
    """The rest of ``attn`` on fused tokens, with the map of the tokens before they were fused ("one-step-ahead").

    The map is never fused itself: summing the columns of a group before they meet its value is the same as to give
    each column its group's value, and averaging rows commutes with the product. So only values [batch, tokens, dim]
    are gathered. Attention dropout falls on the map as it was.

    x: [batch, kept, dim], the normalised fused tokens -> [batch, kept, dim]. weight: as in ``fused_map``.
    """
    values = _project(attn.qkv, x, 2 * attn.attn_dim, 3 * attn.attn_dim)
    if weight is None:  # a maximum does not commute
        attention = attn.attn_drop(fused_map(attention, merge, None))
        out = _product(attn, 1)(attention, _heads(attn, values)).transpose(1, 2).flatten(2)
    else:
        values = _heads(attn, merge.unmerge(values))
        out = _product(attn, 1)(attn.attn_drop(attention), values).transpose(1, 2).flatten(2)
        out = merge.mean(out, weight)
    out = attn.norm(out)
    if (gate := getattr(attn, "gate", None)) is not None:
        out = out * gate(x).sigmoid()
    return attn.proj_drop(attn.proj(out))


def fused_map(attention: Tensor, merge: Merge, weight: Tensor | None) -> Tensor:
    """The attention map of the fused tokens: a group's columns are summed and its rows averaged.

    attention: [batch, heads, tokens, tokens] -> [batch, heads, kept, kept]. weight: [batch, tokens], of the rows; None
    takes their maximum, after which rows no longer sum to one (as in the release).
    """
    rows = merge.sums(attention.permute(0, 3, 1, 2)).permute(0, 3, 2, 1)  # [batch, tokens, heads, kept]
    return (largest(rows, merge) if weight is None else merge.mean(rows, weight)).transpose(1, 2)


def largest(x: Tensor, merge: Merge) -> Tensor:
    """The largest of each group, number by number: x [batch, tokens, ...] -> [batch, kept, ...]."""
    kept, moved = take(x, merge.kept), take(x, merge.moved).flatten(0, 1).flatten(1)
    index = flat(merge.into, kept.shape[1])[:, None].expand_as(moved)
    found = kept.flatten(0, 1).flatten(1).scatter_reduce(0, index, moved, "amax")
    return found.reshape(kept.shape)


def _project(qkv: nn.Linear, x: Tensor, start: int, end: int) -> Tensor:
    """Outputs ``start`` to ``end`` of a joint projection; a quantized one goes through its kernel whole."""
    plain = type(qkv) is nn.Linear or (isinstance(qkv, QuantLinear) and qkv.input_quantizer is None)
    if not plain:
        return qkv(x)[..., start:end]
    bias = None if qkv.bias is None else qkv.bias[start:end]
    return nn.functional.linear(x, qkv.weight[start:end], bias)


def _product(attn: Attention, which: int) -> nn.Module:
    """The first or second product of ``attn``: a site where it has them."""
    if isinstance(attn, SiteAttention):
        return (attn.matmul1, attn.matmul2)[which]
    return torch.matmul


def _heads(attn: Attention, x: Tensor) -> Tensor:
    """[batch, tokens, heads * head_dim] -> [batch, heads, tokens, head_dim]."""
    return x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
