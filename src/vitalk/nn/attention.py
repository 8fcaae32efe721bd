"""Attention whose two products are modules, so that quantizers and probes can sit on them."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.efficientformer import Attention as BiasedAttention
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn


class MatMul(nn.Module):
    """The product of two activations as a module: a [..., rows, inner] @ b [..., inner, columns]."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:  # noqa: D102
        return a @ b


class SiteAttention(Attention):
    """timm's ``Attention``, computed in the open: the softmax is a tensor and both products are modules.

    matmul1: scaled queries times keys; matmul2: softmax times values. Arguments, parameters and their names are
    timm's, so checkpoints fit and ``timm.create_model(..., attn_layer=SiteAttention)`` works; without
    quantizers the result equals timm's unfused path bit for bit.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.matmul1, self.matmul2 = MatMul(), MatMul()

    @classmethod
    def from_timm(cls, attn: Attention) -> Self:
        """A site attention that holds the very modules (and so the parameters) of ``attn``."""
        site = cls(attn.qkv.in_features, attn.num_heads, attn.head_dim, device="meta")
        return _share(site, attn, ("qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x [batch, tokens, dim] -> [batch, tokens, dim]; attn_mask boolean or additive, as in timm."""
        batch, count, _ = x.shape
        gate = None if self.gate is None else self.gate(x).sigmoid()
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        q, k = self.q_norm(q), self.k_norm(k)
        scores = self.matmul1(q * self.scale, k.transpose(-2, -1))
        if is_causal:
            attn_mask = torch.ones(count, count, dtype=torch.bool, device=x.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        elif attn_mask is not None:
            scores = scores + attn_mask
        x = self.matmul2(self.attn_drop(scores.softmax(-1)), v)
        x = self.norm(x.transpose(1, 2).reshape(batch, count, self.attn_dim))
        return self.proj_drop(self.proj(x if gate is None else x * gate))


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Joint projections [batch, tokens, 3 * dim] -> queries, keys, values [batch, heads, tokens, head_dim].

    The same as timm's reshape and unbind, in the form that turns into one Split in an exported graph.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in qkv.chunk(3, -1))
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None) -> Tensor:
    """Softmax attention with the fused kernel: q, k, v [batch, heads, tokens, head_dim] -> the shape of q.

    keys: bool, broadcast against [batch, heads, queries, keys]: those that may be looked at. Where gradients are wanted
    on a CPU the products are multiplied out, since the fused kernel's backward pass is the slower by a factor of 2 to 3
    there for up to some hundred tokens.
    """
    if not (q.device.type == "cpu" and torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if keys is not None:
        scores = scores.masked_fill(~keys, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


class SiteWindowAttention(WindowAttention):
    """Swin's window attention (timm's class), computed in the open like ``SiteAttention``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.matmul1, self.matmul2 = MatMul(), MatMul()

    @classmethod
    def from_timm(cls, attn: WindowAttention) -> Self:
        """A site attention that holds the very modules (and so the parameters) of ``attn``."""
        head_dim = attn.qkv.out_features // (3 * attn.num_heads)
        site = cls(attn.dim, attn.num_heads, head_dim, attn.window_size, device=attn.qkv.weight.device)
        shared = ("relative_position_bias_table", "qkv", "attn_drop", "proj", "proj_drop", "softmax")
        return _share(site, attn, shared)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [batch * windows, tokens, dim] -> the same shape; mask [windows, tokens, tokens], 0 or -100."""
        count, tokens, _ = x.shape
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        scores = self.matmul1(q * self.scale, k.transpose(-2, -1)) + self._get_rel_pos_bias()
        if mask is not None:
            by_window = scores.view(-1, len(mask), self.num_heads, tokens, tokens) + mask[None, :, None]
            scores = by_window.view(-1, self.num_heads, tokens, tokens)
        x = self.matmul2(self.attn_drop(self.softmax(scores)), v)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(count, tokens, -1)))


class SiteBiasedAttention(BiasedAttention):
    """EfficientFormer's attention with position biases (timm's class), in the open like ``SiteAttention``.

    The biases are gathered anew in each pass; timm keeps them, with the graph of the pass that gathered them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.matmul1, self.matmul2 = MatMul(), MatMul()

    @classmethod
    def from_timm(cls, attn: BiasedAttention) -> Self:
        """A site attention that holds the very modules (and so the parameters) of ``attn``."""
        site = cls(attn.qkv.in_features, attn.key_dim, attn.num_heads, attn.attn_ratio, 1, device="meta")
        return _share(site, attn, ("qkv", "proj", "attention_biases", "attention_bias_idxs"))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, dim] -> [batch, tokens, dim]; as many tokens as there are positions."""
        batch, count, _ = x.shape
        heads = self.qkv(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        q, k, v = heads.split([self.key_dim, self.key_dim, self.val_dim], -1)
        scores = self.matmul1(q, k.transpose(-2, -1)) * self.scale
        scores = scores + self.attention_biases[:, self.attention_bias_idxs]
        x = self.matmul2(scores.softmax(-1), v)
        return self.proj(x.transpose(1, 2).reshape(batch, count, self.val_attn_dim))


def _share(site: nn.Module, attn: nn.Module, names: tuple[str, ...]) -> Any:
    for name in names:
        setattr(site, name, getattr(attn, name))
    site.train(attn.training)  # not in the return: EfficientFormer's train returns nothing
    return site
