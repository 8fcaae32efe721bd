"""DualToken-ViT: maps of image tokens and a grid of global tokens, side by side through all stages."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates, to_2tuple, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vitalk.errors import UserError

from .blocks import Stage, make_block
from .layers import STRIDES, LayerNorm, MergePatch, Stem, tokens_of

CHOICES = {
    "local": ("conv", "window"),
    "tokens": ("position", "normal", "none"),
    "downsample": ("stepwise", "onestep"),
    "global_mlp": ("mlp", "mix"),
    "global_pool": ("avg", ""),
}


class DualTokenViT(nn.Module):
    """DualToken-ViT (arXiv 2309.12424), a timm backbone with three feature maps at strides 8, 16 and 32.

    img_size: pixels that the step-wise down-sampling is laid out for; all sizes are read whose sides are multiples of
    the last stride. stem_stride: 8, or 4 or 2 for small pictures. head_dim: the width of a head.
    grid: the side of the grid of global tokens, to which every map is pooled. token_grid: the side of the grid on
    which they are learned, interpolated to ``grid`` where it differs.
    local: "conv", or "window" for windows of ``grid`` x ``grid`` in its place. tokens: "position"; "normal" are
    ``num_tokens`` without a place, as in LightViT; "none" leaves out the global branch.
    downsample: "stepwise", or "onestep". global_mlp: "mlp", or "mix" for MixMLP. alpha, learn_alpha: the weight of the
    picture in the global tokens, see ``PositionTokens``. global_ffn: see ``DualTokenBlock``.
    neck_dim: the width before the classifier. global_pool: "" returns the logits of all tokens.

    Raises UserError for designs and pictures that do not fit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: Literal["avg", ""] = "avg",
        embed_dims: Sequence[int] = (64, 128, 256),
        depths: Sequence[int] = (2, 6, 3),
        mlp_ratios: Sequence[float] = (8.0, 4.0, 4.0),
        head_dim: int = 32,
        stem_stride: int = 8,
        grid: int = 7,
        token_grid: int | None = None,
        local: Literal["conv", "window"] = "conv",
        tokens: Literal["position", "normal", "none"] = "position",
        num_tokens: int = 8,
        downsample: Literal["stepwise", "onestep"] = "stepwise",
        global_mlp: Literal["mlp", "mix"] = "mlp",
        alpha: float = 0.5,
        learn_alpha: bool = False,
        global_ffn: bool = False,
        neck_dim: int = 1280,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        chosen = {"local": local, "tokens": tokens, "downsample": downsample}
        check_design({**chosen, "global_mlp": global_mlp, "global_pool": global_pool}, stem_stride, alpha)
        check_widths(embed_dims, depths, mlp_ratios, head_dim)
        check_counts(grid=grid, token_grid=token_grid or grid, num_tokens=num_tokens)
        self.reduction = stem_stride << len(embed_dims) - 1
        self._check_size(to_2tuple(img_size))
        self.grid, self.num_classes, self.global_pool = grid, num_classes, global_pool
        self.num_features, self.head_hidden_size = embed_dims[-1], neck_dim
        self.stem = Stem(in_chans, embed_dims[0], stem_stride)
        self.global_tokens = None
        if tokens != "none":
            count = num_tokens if tokens == "normal" else (token_grid or grid) ** 2
            self.global_tokens = nn.Parameter(torch.empty(1, count, embed_dims[0]))
        self.interpolate = tokens == "position" and (token_grid or grid) != grid
        design = {"head_dim": head_dim, "grid": grid, "local": local, "tokens": tokens, "num_tokens": num_tokens}
        design |= {"one_step": downsample == "onestep", "global_mlp": global_mlp, "alpha": alpha}
        design |= {"learn_alpha": learn_alpha, "global_ffn": global_ffn}
        design |= {"attn_drop": attn_drop_rate, "proj_drop": proj_drop_rate}
        rates = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        merges = [None, *(MergePatch(*dims, global_tokens=tokens != "none") for dims in pairwise(embed_dims))]
        sides = [min(to_2tuple(img_size)) // (stem_stride << i) for i in range(len(depths))]
        self.stages = nn.ModuleList(
            Stage(merge, [make_block(dim, side, ratio, next(rates), **design) for _ in range(depth)])
            for merge, dim, side, ratio, depth in zip(merges, embed_dims, sides, mlp_ratios, depths, strict=True)
        )
        self.feature_info = [
            {"num_chs": dim, "reduction": stem_stride << i, "module": f"stages.{i}"} for i, dim in enumerate(embed_dims)
        ]
        self.norm = LayerNorm(embed_dims[-1])
        self.neck = nn.Sequential(nn.Linear(embed_dims[-1], neck_dim), nn.LayerNorm(neck_dim), nn.GELU())
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(neck_dim, num_classes) if num_classes > 0 else nn.Identity()
        self.apply(_init_weights)
        if self.global_tokens is not None:
            trunc_normal_(self.global_tokens, std=0.02)

    def forward_features(self, x: Tensor) -> Tensor:
        """images [batch, channels, height, width] -> normalised [batch, global + image tokens, dim], global first."""
        x, g = self._begin(x)
        for stage in self.stages:
            x, g = stage(x, g)
        return self.norm(tokens_of(x, g))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features [batch, tokens, dim] -> logits [batch, classes], or the pooled [batch, neck_dim] before them."""
        x = self.neck(x)
        x = self.head_drop(x.mean(1) if self.global_pool else x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """images [batch, channels, height, width] -> logits [batch, classes]."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Features and the maps of the stages ``indices``, [batch, dim, height, width] each, as timm's models do.

        norm: apply the final norm to the last stage's map; the others have none.
        """
        if output_fmt != "NCHW":
            raise UserError(f"feature maps come as NCHW, not {output_fmt}")
        wanted, last = feature_take_indices(len(self.stages), indices)
        maps = []
        x, g = self._begin(x)
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x, g = stage(x, g)
            if i in wanted:
                final = norm and i == len(self.stages) - 1
                maps.append((self.norm(x) if final else x).permute(0, 3, 1, 2))
        return maps if intermediates_only else (self.norm(tokens_of(x, g)), maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the maps of the stages ``indices`` do not need; returns the indices from the beginning."""
        wanted, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        self.num_features = self.feature_info[last]["num_chs"]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.neck, self.head_hidden_size = nn.Identity(), self.num_features
            self.reset_classifier(0)
        return wanted

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Literal["avg", ""] | None = None) -> None:
        """A new classifier for so many classes, none for 0."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        like = self.stem.proj.weight
        head = nn.Linear(self.head_hidden_size, num_classes) if num_classes > 0 else nn.Identity()
        self.head = head.apply(_init_weights).to(like.device, like.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks again in the backward pass instead of keeping what they computed."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Global tokens and tables of relative positions."""
        return {name for name, _ in self.named_parameters() if name.endswith(("global_tokens", "bias_table"))}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong together, from the pictures up, for learning rates that fall layer by layer."""
        fine = [(r"^stages\.(\d+)\.merge", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm|^neck", (99999,))]
        return {"stem": r"^stem|^global_tokens", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def _begin(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        self._check_size(tuple(images.shape[2:]))
        x, g = self.stem(images), self.global_tokens
        if g is None:
            return x, None
        if self.interpolate:
            side = int(g.shape[1] ** 0.5)
            cells = g.transpose(1, 2).unflatten(2, (side, side))
            g = F.interpolate(cells, size=(self.grid, self.grid), mode="bilinear").flatten(2).transpose(1, 2)
        return x, g.repeat(x.shape[0], 1, 1)  # not expand, which for a single picture hands on the parameter itself

    def _check_size(self, size: tuple[int, ...]) -> None:
        if len(size) != 2 or any(side < 1 or side % self.reduction for side in size):
            raise UserError(
                f"DualToken-ViT reads pictures whose sides are multiples of {self.reduction} pixels here, not"
                f" {' x '.join(map(str, size))}; resize, crop or pad them"
            )


def check_design(chosen: dict[str, str], stem_stride: int, alpha: float) -> None:
    """Raises UserError for options that there are not."""
    for name, value in chosen.items():
        if value not in CHOICES[name]:
            raise UserError(f"{name} is one of {', '.join(map(repr, CHOICES[name]))}, not {value!r}; pass one of them")
    if stem_stride not in STRIDES:
        raise UserError(f"stem_stride is 8, 4 or 2, not {stem_stride}; pass one of them")
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha is a weight between 0 and 1, not {alpha}; pass one, 0.5 for instance")


def check_widths(dims: Sequence[int], depths: Sequence[int], ratios: Sequence[float], head_dim: int) -> None:
    """Raises UserError for stages that do not fit together."""
    if not len(dims) == len(depths) == len(ratios) > 0:
        raise UserError(
            "embed_dims, depths and mlp_ratios hold a value for each stage, not"
            f" {len(dims)}, {len(depths)} and {len(ratios)}; give each as many"
        )
    if head_dim < 1 or any(dim < 1 or dim % head_dim or dim % 4 for dim in dims):
        raise UserError(
            f"embed_dims {', '.join(map(str, dims))} must be multiples of head_dim {head_dim} and of 4; change them"
        )
    check_counts(**{f"depths[{i}]": depth for i, depth in enumerate(depths)})


def check_counts(**counts: int) -> None:
    """Raises UserError for numbers of things below 1."""
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
