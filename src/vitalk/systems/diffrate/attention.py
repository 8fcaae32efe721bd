"""Attention in the open: the whole map, among live tokens, weighted by size."""

from dataclasses import replace
from typing import TypeVar

import torch
from timm.layers import Attention
from timm.models.metaformer import Attention as MetaAttention
from timm.models.metaformer import MetaFormerBlock
from torch import Tensor

from vitalk.nn.attention import split_heads
from vitalk.vision.tokens import Tokens

EPS = 1e-6
Some = TypeVar("Some", bound=Tokens)


def open_attention(
    attn: Attention | MetaAttention, x: Tensor, size: Tensor | None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Self-attention x [batch, tokens, dim] -> the same shape, and its map [batch, heads, tokens, tokens].

    size: [batch, tokens], by which keys weigh; None for 1. mask: [batch, tokens], 0 hides a key from all but itself,
    see ``masked_softmax``.
    """
    q, k, v = split_heads(attn.qkv(x), attn.num_heads)
    if isinstance(attn, Attention):
        q, k = attn.q_norm(q), attn.k_norm(k)
    scores = (q * attn.scale) @ k.transpose(-2, -1)
    if size is not None:
        scores = scores + size.log().to(scores.dtype)[:, None, None]
    weights = scores.softmax(-1) if mask is None else masked_softmax(scores, mask)
    out = (attn.attn_drop(weights.to(v.dtype)) @ v).transpose(1, 2).flatten(2)
    if isinstance(attn, Attention):
        out = attn.norm(out)
        if (gate := getattr(attn, "gate", None)) is not None:
            out = out * gate(x).sigmoid()
    return attn.proj_drop(attn.proj(out)), weights


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over keys that a mask weighs, with gradients for the mask (arXiv 2305.17997, eq. 8).

    scores: [batch, heads, tokens, tokens]; mask: [batch, tokens]. A token always sees itself. In float32, whatever
    comes in; the small constant keeps rows without a live key finite.
    """
    count = scores.shape[-1]
    itself = torch.eye(count, dtype=torch.bool, device=scores.device)
    visible = torch.where(itself, 1.0, mask[:, None].float())[:, None]
    weights = (scores - scores.amax(-1, keepdim=True).detach()).float().exp() * visible
    return (weights + EPS / count) / (weights.sum(-1, keepdim=True) + EPS)


def meta_attention(block: MetaFormerBlock, tokens: Some, mask: Tensor | None = None) -> tuple[Some, Tensor]:
    """First half of a block of CAFormer, and the attention that each token receives, [batch, tokens]."""
    x = tokens.features
    mixed, weights = open_attention(block.token_mixer, block.norm1(x), tokens.size, mask)
    x = block.res_scale1(x) + block.layer_scale1(block.drop_path1(mixed))
    return replace(tokens, features=x), weights.mean((1, 2))


def meta_mlp(block: MetaFormerBlock, tokens: Some) -> Some:
    """Second half of a block of CAFormer, its MLP."""
    x = tokens.features
    return replace(
        tokens, features=block.res_scale2(x) + block.layer_scale2(block.drop_path2(block.mlp(block.norm2(x))))
    )
