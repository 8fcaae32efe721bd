"""The retention layer, its block, and what a network's mode makes of them."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from timm.layers import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.attention import split_heads
from vitalk.nn.retention import (
    ClassToken,
    Schedule,
    decay_mask,
    decays,
    grid_decay_mask,
    retain,
    retain_chunks,
    retain_rows,
    retain_tokens,
)

Mode = Literal["parallel", "recurrent", "chunkwise", "release_softmax"]
Decay = Literal["1d", "2d"]
Post = Literal["none", "ln_gelu", "groupnorm"]
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


class HeadNorm(nn.GroupNorm):
    """Each head's outputs normalised by themselves, token by token: [batch, tokens, dim] -> the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, dim] -> the same shape."""
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def post_layer(post: Post, dim: int, heads: int, norm_layer: type[nn.Module], **dd: Any) -> nn.Module:
    """What stands between retention and its projection. Raises UserError for what there is not.

    "none" (the release), "ln_gelu" (the reimplementation) or "groupnorm" (arXiv 2307.08621, section 3.2, without the
    gate that belongs to it there). Which one the published figures used is unconfirmed.
    """
    if post == "ln_gelu":
        return nn.Sequential(norm_layer(dim, **dd), nn.GELU())
    if post == "groupnorm":
        return HeadNorm(heads, dim, **dd)
    if post != "none":
        raise UserError(f"there is no post {post!r}; choose {', '.join(get_args(Post))}")
    return nn.Identity()


class Retention(nn.Module):
    """Multi-head retention without gate or rotary phase (arXiv 2310.19731, section 3); timm's arguments."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise UserError(f"{num_heads} heads do not share {dim} channels evenly; choose a divisor of {dim}")
        dd = {"device": device, "dtype": dtype}
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.post: nn.Module = nn.Identity()
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, mix: Mix) -> Tensor:
        """x [batch, tokens, dim] -> the same shape. mix: a form of retention, or a state that goes on with x."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        mixed = mix(q * self.scale, k, v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(self.post(mixed)))


class RetentionBlock(Block):
    """timm's pre-norm block around retention."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        post: Post = "none",
        norm_layer: type[nn.Module] = LayerNorm,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        options = {**kwargs, "attn_layer": Retention, "norm_layer": norm_layer}
        super().__init__(dim, num_heads, **options, **dd)
        self.attn.post = post_layer(post, dim, num_heads, norm_layer, **dd)

    def forward(self, x: Tensor, mix: Mix) -> Tensor:
        """x [batch, tokens, dim] -> the same shape; mix as in ``Retention``."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), mix)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class Mixing:
    """How the retention layers of a network mix tokens; what all of its layers share.

    heads, schedule: give the decays. decay: "1d" along the raster sequence, "2d" on the grid. class_token: where it
    stands in the sequence. Raises UserError for what does not exist.
    """

    def __init__(self, heads: int, schedule: Schedule, decay: Decay, class_token: ClassToken = None) -> None:
        if decay not in get_args(Decay):
            raise UserError(f"there is no decay {decay!r}; choose {', '.join(get_args(Decay))}")
        try:
            # Numbers, not a buffer: a model in bfloat16 would round its decays to 1.
            self.decays = decays(heads, schedule)
        except ValueError as error:
            raise UserError(str(error)) from None
        self.decay, self.class_token = decay, class_token

    def gamma(self, device: torch.device) -> Tensor:
        """The decays as a tensor [heads], float32."""
        return torch.tensor(self.decays, device=device)

    def form(self, mode: Mode, chunk_size: int, tokens: int, grid: tuple[int, int], device: torch.device) -> Mix:
        """The form of retention that all layers use for one batch.

        tokens: length of the sequence. grid: its rows and columns without the class token, which "2d" goes by; there
        "recurrent" goes row by row and "chunkwise" as many rows a time as ``chunk_size`` tokens fill, but at least one.
        """
        gamma = self.gamma(device)
        if mode in ("parallel", "release_softmax"):
            on_grid = self.decay == "2d"
            mask = grid_decay_mask(*grid, gamma, self.class_token) if on_grid else decay_mask(tokens, gamma)
            return partial(retain if mode == "parallel" else retain_with_softmax, mask=mask)
        if mode not in get_args(Mode):
            raise UserError(f"there is no mode {mode!r}; choose {', '.join(get_args(Mode))}")
        if not isinstance(chunk_size, int) or chunk_size < 1:
            raise UserError(f"a chunk holds a whole number of tokens from 1 on, got chunk_size={chunk_size}")
        if self.decay == "2d":
            rows = 1 if mode == "recurrent" else max(1, chunk_size // grid[1])
            return partial(retain_rows, gamma=gamma, width=grid[1], rows=rows, class_token=self.class_token)
        if mode == "recurrent":
            return partial(retain_tokens, gamma=gamma)
        return lambda q, k, v: retain_chunks(q, k, v, gamma, chunk_size)[0]


def retain_with_softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """What the release computes in its parallel mode: softmax over the masked products, and no retention.

    Masked products are 0, not -inf, so that every token sees all tokens after it; no recurrence equals it.
    """
    return (q @ k.transpose(-2, -1) * mask.to(q.dtype)).softmax(-1) @ v
