"""Tokens-to-token: overlapping soft splits with a small attention layer between them."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.performer import PositiveFeatures, linear_attention

Tokenizer = Literal["performer", "transformer", "conv"]
Splits = Sequence[tuple[int, int, int]]

SPLITS: Splits = ((7, 4, 2), (3, 2, 1), (3, 2, 1))


class TokenLayer(nn.Module):
    """One-head attention from wide tokens to narrow ones (arXiv 2101.11986, section 3.1).

    As the width changes there is no residual around the attention: its values are the skip path.
    kind: "transformer" is softmax attention at the scale dim^-0.5 of the wide tokens, without bias; "performer" is
    linear attention over width / 2 positive random features, unscaled, with bias and with dropout 0.1 (in training,
    whatever the model's own rate). Both keep queries, keys and values in this order.
    """

    def __init__(self, dim: int, width: int, kind: Tokenizer, **dd: Any) -> None:
        super().__init__()
        linear = kind == "performer"
        self.scale = dim**-0.5
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.qkv = nn.Linear(dim, 3 * width, bias=linear, **dd)
        self.features = PositiveFeatures(width, max(width // 2, 1), **dd) if linear else None
        self.proj = nn.Linear(width, width, **dd)
        self.drop = nn.Dropout(0.1 if linear else 0.0)
        self.norm2 = nn.LayerNorm(width, **dd)
        self.mlp = Mlp(width, width, drop=(0.0, self.drop.p), **dd)

    def attend(self, x: Tensor) -> Tensor:
        """The layer up to its MLP: [batch, tokens, dim] -> [batch, tokens, width]."""
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        if self.features is not None:
            mixed = linear_attention(self.features(q), self.features(k), v)
        else:
            q, k, values = (t.unsqueeze(1) for t in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, values, scale=self.scale).squeeze(1)
        return v + self.drop(self.proj(mixed))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [batch, tokens, dim] -> [batch, tokens, width]."""
        x = self.attend(x)
        return x + self.mlp(self.norm2(x))


class SoftSplit(nn.Module):
    """Cuts a map into overlapping windows, one a token, sends these through ``layer`` and lays them out as a map.

    A token holds its window channel by channel, row by row: channels * kernel^2 values.
    """

    def __init__(self, kernel: int, stride: int, padding: int, layer: nn.Module) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding, self.layer = kernel, stride, padding, layer

    def split(self, x: Tensor) -> Tensor:
        """The map [batch, channels, height, width] -> tokens [batch, tokens, channels * kernel^2]."""
        return F.unfold(x, self.kernel, padding=self.padding, stride=self.stride).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """The map [batch, channels, height, width] -> [batch, width of layer, height / stride, width / stride]."""
        grid = tuple(_windows(n, self.kernel, self.stride, self.padding) for n in x.shape[-2:])
        return self.layer(self.split(x)).transpose(1, 2).unflatten(2, grid)


class TokensToToken(nn.Module):
    """The patch embedding of T2T-ViT, in the place of timm's ``PatchEmbed``.

    tokenizer: what stands between the soft splits, "performer", "transformer" or "conv" (three plain convolutions,
    the paper's table 5, for comparison). token_dim: the width between the splits.
    splits: kernel, stride and padding of each; the last one is only projected to embed_dim, so ``[(16, 16, 0)]``
    is the plain patch embedding.
    Raises UserError where the picture is not square or its side is no multiple of all strides together.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        embed_dim: int = 768,
        tokenizer: Tokenizer = "performer",
        token_dim: int = 64,
        splits: Splits = SPLITS,
        strict_img_size: bool = True,
        output_fmt: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        if tokenizer not in get_args(Tokenizer):
            raise UserError(f"there is no tokenizer {tokenizer!r}; choose {', '.join(get_args(Tokenizer))}")
        dd = {"device": device, "dtype": dtype}
        self.embed_dim, self.reduction = embed_dim, reduction(splits)
        self.patch_size = (self.reduction, self.reduction)
        self.strict, self.flatten = strict_img_size, output_fmt is None
        widths = [in_chans, *[token_dim] * (len(splits) - 1), embed_dim]
        stages = []
        for (kernel, stride, padding), before, after in zip(splits, widths, widths[1:], strict=False):
            if tokenizer == "conv":
                stages.append(nn.Conv2d(before, after, kernel, stride, padding, **dd))
                continue
            window = before * kernel**2
            last = len(stages) == len(splits) - 1
            layer = nn.Linear(window, after, **dd) if last else TokenLayer(window, after, tokenizer, **dd)
            stages.append(SoftSplit(kernel, stride, padding, layer))
        self.stages = nn.Sequential(*stages)
        self.set_input_size(img_size)

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: Any = None) -> None:
        """Read pictures of another size from now on. Raises UserError for sizes that do not fit."""
        if patch_size is not None:
            raise UserError(f"the patch size of T2T-ViT follows from its splits ({self.reduction}); leave it out")
        if img_size is not None:
            size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
            self._check(size)
            self.img_size = size
            self.grid_size = self.dynamic_feat_size(size)
            self.num_patches = self.grid_size[0] * self.grid_size[1]

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels a token along each side."""
        return self.reduction if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """The grid of tokens of a picture."""
        return img_size[0] // self.reduction, img_size[1] // self.reduction

    def forward(self, images: Tensor) -> Tensor:
        """images [batch, channels, height, width] -> [batch, tokens, embed_dim], or the grid, channels last."""
        size = tuple(images.shape[-2:])
        if size != self.img_size:
            self._check(size)
            if self.strict:
                raise UserError(
                    f"the picture has {size[0]} x {size[1]} pixels, the model reads {self.img_size[0]} x"
                    f" {self.img_size[1]}; resize the picture, or build the model with img_size={size[0]}"
                )
        grid = self.stages(images)
        return grid.flatten(2).transpose(1, 2) if self.flatten else grid.permute(0, 2, 3, 1)

    def _check(self, size: tuple[int, ...]) -> None:
        if len(size) != 2 or size[0] != size[1] or size[0] < 1 or size[0] % self.reduction:
            raise UserError(
                f"T2T-ViT reads square pictures whose side is a multiple of {self.reduction} pixels,"
                f" not {' x '.join(map(str, size))}; resize or crop them"
            )


def reduction(splits: Splits) -> int:
    """Pixels a token along each side after all splits. Raises UserError for splits that do not tile a map."""
    if not splits:
        raise UserError("T2T-ViT needs at least one split (kernel, stride, padding)")
    for split in splits:
        # These bounds are those under which a map of n * stride gives exactly n windows a side.
        if len(split) != 3 or min(split[1:]) < 0 or not 0 < split[0] - 2 * split[2] <= split[1]:
            raise UserError(f"a split is (kernel, stride, padding) with kernel - 2 padding in (0, stride], got {split}")
    return math.prod(stride for _, stride, _ in splits)


def _windows(side: int, kernel: int, stride: int, padding: int) -> int:
    return (side + 2 * padding - kernel) // stride + 1
