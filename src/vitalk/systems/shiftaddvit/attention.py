"""Linear-angular attention (Castling-ViT, arXiv 2211.10526) with real or binary codes of queries and keys."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.pvt_v2 import Attention as ReducedAttention
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.attention import split_heads
from vitalk.nn.precision import full_precision

from .hashing import KernelHash
from .shift import straight

Kind = Literal["linear", "binary", "hash"]
Statistics = Literal["sample", "batch"]
WINDOW = 9  # tokens of the convolution over the values
SPARSE = 0.02  # attention above it counts in the training-only branch


class BinaryCodes(nn.Module):
    """code = 1[x - mean(x) > 0], the vanilla quantization: [batch, heads, tokens, dim] -> {0, 1} of the same shape.

    statistics: "sample" takes the mean of each picture, so that its answer does not depend on the others in the
    batch; "batch" is the release's, over the whole tensor. The gradient passes through clamp(x, 0, 1).
    """

    def __init__(self, statistics: Statistics = "sample"):
        super().__init__()
        if statistics not in ("sample", "batch"):
            raise UserError(f"statistics of binary codes are 'sample' or 'batch', not {statistics!r}")
        self.statistics = statistics

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        given = x.detach()
        mean = given.mean((1, 2, 3), keepdim=True) if self.statistics == "sample" else given.mean()
        return straight(x.clamp(0.0, 1.0), (given > mean).to(x.dtype))


class Mix(nn.Module):
    """0.5 v + q (k^T v) / pi: q, k [batch, heads, tokens, bits], v [batch, heads, tokens, dim] -> the shape of v.

    Linear in the tokens. Where q and k are binary, both products are sums of rows (``integer.IntegerMix`` takes them
    so).
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: D102
        return 0.5 * v + (q @ (k.transpose(-2, -1) @ v)) / math.pi


class AngularAttention(nn.Module):
    """Attention that is linear in the tokens, with codes of queries and keys: [batch, tokens, dim] -> the same shape.

    o = 0.5 v + q (k^T v) / pi of the codes; o / |o| over the head's channels, plus a depth-wise convolution of the
    values over nine tokens (one filter a head), then the projection (arXiv 2306.06446, section 4.1). No division by
    the number of tokens: the norm absorbs it. Rows that are all zero stay so.

    attn: timm's attention, of a ViT or PVTv2, whose projections are taken over; a PVTv2's spatial reduction goes.
    kind: "linear" for real codes (ordinary linear attention, the ablation's middle point), "binary" for
    ``BinaryCodes``, "hash" for ``KernelHash``, where queries and keys share the query's projection.
    statistics, bits, anchors: of the codes. sparse: in training, softmax attention above 0.02 is added.
    The convolution is new and starts at zero (ours), which disturbs a trained network least.

    Raises UserError for kinds that do not exist and for attention with a gate or a norm of its own.
    """

    def __init__(
        self,
        attn: Attention | ReducedAttention,
        kind: Kind = "binary",
        statistics: Statistics = "sample",
        bits: int = 16,
        anchors: int = 25,
        sparse: bool = False,
    ):
        super().__init__()
        if kind not in ("linear", "binary", "hash"):
            raise UserError(f"there is no attention {kind!r}; choose linear, binary or hash")
        self.num_heads, self.head_dim, self.kind, self.sparse = attn.num_heads, attn.head_dim, kind, sparse
        self.q_norm, self.k_norm = (getattr(attn, name, nn.Identity()) for name in ("q_norm", "k_norm"))
        if isinstance(attn, Attention):
            if attn.gate is not None or not isinstance(attn.norm, nn.Identity):
                raise UserError("attention with a gate or a norm of its output has no linear-angular form")
            query, key_value = attn.qkv, None
        else:
            query, key_value = attn.q, attn.kv
        if kind == "hash":
            last = query if key_value is None else key_value
            dim = self.num_heads * self.head_dim
            self.to_qk, self.to_v = rows(query, 0, dim), rows(last, last.out_features - dim, last.out_features)
        elif key_value is None:
            self.qkv = query
        else:
            self.q, self.kv = query, key_value
        self.codes = {
            "linear": nn.Identity,
            "binary": lambda: BinaryCodes(statistics),
            "hash": lambda: KernelHash(self.num_heads, self.head_dim, bits, anchors),
        }[kind]()
        self.mix = Mix()
        self.dconv = nn.Conv2d(
            self.num_heads, self.num_heads, (WINDOW, 1), padding=(WINDOW // 2, 0), groups=self.num_heads, bias=False
        )
        nn.init.zeros_(self.dconv.weight)
        self.proj, self.proj_drop = attn.proj, attn.proj_drop
        self.to(attn.proj.weight.device).train(attn.training)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [batch, tokens, dim] -> queries, keys and values [batch, heads, tokens, head_dim]; hashed, q is k."""
        if self.kind == "hash":
            q, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in (self.to_qk(x), self.to_v(x)))
            return (q := self.q_norm(q)), q, v
        joint = self.qkv(x) if hasattr(self, "qkv") else torch.cat([self.q(x), self.kv(x)], -1)
        q, k, v = split_heads(joint, self.num_heads)
        return self.q_norm(q), self.k_norm(k), v

    def forward(
        self, x: Tensor, feat_size: object = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """x [batch, tokens, dim] -> the same shape. feat_size: the grid that PVTv2 passes, of no use here."""
        if attn_mask is not None or is_causal:
            raise UserError("linear-angular attention takes no mask: its keys are summed before a query sees them")
        q, k, v = self.project(x)
        with full_precision(x):  # sums over all tokens, and codes that a rounding could turn
            q, k, v = q.float(), k.float(), v.float()
            unit = F.normalize(q, dim=-1, eps=1e-6)
            code_q = self.codes(unit)
            code_k = code_q if self.kind == "hash" else self.codes(F.normalize(k, dim=-1, eps=1e-6))
            out = self.mix(code_q, code_k, v)
            if self.sparse and self.training:
                out = out + sparse_attention(q, k, v)
            out = F.normalize(out, dim=-1, eps=1e-6) + self.dconv(v.to(self.dconv.weight.dtype))
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2).to(x.dtype)))

    def extra_repr(self) -> str:
        """What the printed module shows."""
        return f"kind={self.kind}, num_heads={self.num_heads}, sparse={self.sparse}"


def sparse_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention without its entries below 0.02; q, k, v [batch, heads, tokens, dim] -> the shape of v."""
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
    return (weights * (weights > SPARSE)) @ v


def rows(linear: nn.Linear, first: int, last: int) -> nn.Linear:
    """The part of a linear layer that gives outputs ``first`` to ``last``, a copy."""
    part = nn.Linear(linear.in_features, last - first, linear.bias is not None)
    part.weight.data = linear.weight.detach()[first:last].clone()
    if linear.bias is not None:
        part.bias.data = linear.bias.detach()[first:last].clone()
    return part
