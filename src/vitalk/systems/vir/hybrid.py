"""HViR: convolutions where the map is fine, retention where it is coarse (arXiv 2310.19731, version 2)."""

from typing import Any

import torch
from timm.layers import (
    ConvNormAct,
    DropPath,
    LayerNorm,
    LayerScale2d,
    calculate_drop_path_rates,
    get_device_dtype,
    trunc_normal_,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitalk.errors import UserError
from vitalk.nn.retention import Schedule

from .layers import Decay, Mix, Mixing, Mode, Post, RetentionBlock

STRIDE = 32


class ConvBlock(nn.Module):
    """A residual block of two 3 x 3 convolutions; [batch, dim, height, width] -> the same shape."""

    def __init__(self, dim: int, init_values: float | None, drop_path: float, **dd: Any) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(dim, dim, 3, act_layer=nn.GELU, **dd)
        self.conv2 = ConvNormAct(dim, dim, 3, apply_act=False, **dd)
        self.ls = LayerScale2d(dim, init_values, **dd) if init_values else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mix: Mix | None = None) -> Tensor:
        """x [batch, dim, height, width] -> the same shape; there is nothing to mix."""
        return x + self.drop_path(self.ls(self.conv2(self.conv1(x))))


class Stage(nn.Module):
    """Blocks on maps of one size, behind a strided convolution where there is one.

    heads: the blocks retain over the map's positions in raster order, or are convolutions where it is 0.
    """

    def __init__(
        self, before: int, dim: int, heads: int, rates: list[float], mixing: Mixing | None, post: Post,
        init_values: float | None, mlp_ratio: float, proj_drop: float, **dd: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.mixing, self.grad_checkpointing = mixing, False
        down = ConvNormAct(before, dim, 3, stride=2, apply_act=False, **dd)
        self.downsample = down if before != dim else nn.Identity()
        options = {"mlp_ratio": mlp_ratio, "qkv_bias": True, "proj_drop": proj_drop, "post": post}
        self.blocks = nn.ModuleList(
            RetentionBlock(dim, heads, init_values=init_values, drop_path=rate, **options, **dd)
            if heads
            else ConvBlock(dim, init_values, rate, **dd)
            for rate in rates
        )

    def forward(self, x: Tensor, mode: Mode, chunk_size: int) -> Tensor:
        """x [batch, dim before, height, width] -> [batch, dim, height / 2, width / 2], or the size as it was."""
        x = self.downsample(x)
        grid, mix = tuple(x.shape[-2:]), None
        if self.mixing is not None:
            mix = self.mixing.form(mode, chunk_size, grid[0] * grid[1], grid, x.device)
            x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, mix, use_reentrant=False)
            else:
                x = block(x, mix)
        return x if mix is None else x.transpose(1, 2).unflatten(2, grid)


class HybridRetention(nn.Module):
    """HViR: a stem, two stages of residual convolutions at strides 4 and 8, two of retention at 16 and 32.

    The paper's layer counts and widths are unconfirmed and no code is public: sizes, stem, downsampling and the average
    pool are ours, after the usual hybrid. There is neither position table nor class token, convolutions and decays
    say where things are, and any picture whose sides are multiples of 32 pixels is read.
    dims, depths: a stage each. head_dim: channels a head of the retention stages. mode, chunk_size, decay, schedule,
    post: as in ``VisionRetention``; 2-D decay, which belongs to the same version of the paper, is the default.
    Raises UserError for designs and sizes that mean nothing.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: tuple[int, int, int, int] = (64, 128, 256, 512),
        depths: tuple[int, int, int, int] = (2, 3, 6, 5),
        head_dim: int = 32,
        mlp_ratio: float = 4.0,
        init_values: float | None = 1e-5,
        decay: Decay = "2d",
        schedule: Schedule = "vir",
        post: Post = "none",
        mode: Mode = "parallel",
        chunk_size: int = 64,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if img_size is not None:
            _check_size((img_size, img_size) if isinstance(img_size, int) else img_size)
        if any(dim % head_dim for dim in dims[2:]):
            raise UserError(f"heads of {head_dim} channels do not share {tuple(dims[2:])} evenly; choose a divisor")
        dd = {"device": device, "dtype": dtype}
        self.num_classes, self.in_chans, self.mode, self.chunk_size = num_classes, in_chans, mode, chunk_size
        self.num_features = self.head_hidden_size = dims[-1]
        self.stem = nn.Sequential(
            ConvNormAct(in_chans, dims[0] // 2, 3, stride=2, act_layer=nn.GELU, **dd),
            ConvNormAct(dims[0] // 2, dims[0], 3, stride=2, act_layer=nn.GELU, **dd),
        )
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for i, (before, dim) in enumerate(zip((dims[0], *dims), dims, strict=False)):
            heads = dim // head_dim if i > 1 else 0
            mixing = Mixing(heads, schedule, decay) if heads else None
            stages.append(
                Stage(before, dim, heads, rates[i], mixing, post, init_values, mlp_ratio, proj_drop_rate, **dd)
            )
        stages[2].mixing.form(mode, chunk_size, 1, (1, 1), torch.device("cpu"))  # refuses unknown modes and chunks
        self.stages = nn.ModuleList(stages)
        self.feature_info = [
            {"module": f"stages.{i}", "num_chs": dim, "reduction": 4 * 2**i} for i, dim in enumerate(dims)
        ]
        self.norm = LayerNorm(dims[-1], **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self.apply(_init)

    def forward(self, x: Tensor, mode: Mode | None = None, chunk_size: int | None = None) -> Tensor:
        """Images [batch, channels, height, width] -> logits [batch, classes]; mode and chunk_size of the stages."""
        return self.forward_head(self.forward_features(x, mode, chunk_size))

    def forward_features(self, x: Tensor, mode: Mode | None = None, chunk_size: int | None = None) -> Tensor:
        """Images [batch, channels, height, width] -> the normalised map [batch, dim, height / 32, width / 32]."""
        _check_size(tuple(x.shape[-2:]))
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x, mode or self.mode, self.chunk_size if chunk_size is None else chunk_size)
        return self._normalised(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The map [batch, dim, height, width] -> logits [batch, classes], or the pooled features before the head."""
        x = self.head_drop(x.mean((2, 3)) if self.global_pool == "avg" else x)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """What stages give, [batch, dim, height, width] each, as timm's method of this name."""
        if output_fmt != "NCHW":
            raise UserError(f"feature maps are NCHW, not {output_fmt}")
        taken, last = feature_take_indices(len(self.stages), indices)
        _check_size(tuple(x.shape[-2:]))
        x, found = self.stem(x), []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x, self.mode, self.chunk_size)
            if i in taken:
                found.append(self._normalised(x) if norm and i == len(self.stages) - 1 else x)
        return found if intermediates_only else (self._normalised(x), found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the stages ``indices`` do not need; timm's method of this name."""
        taken, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head, and "avg" to pool the map or "" not to. Raises UserError for other ways to pool."""
        if global_pool not in (None, "avg", ""):
            raise UserError(f"HViR pools by 'avg' or not at all (''), not by {global_pool!r}")
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.num_classes = num_classes
        dd = get_device_dtype(self)
        self.head = nn.Linear(self.num_features, num_classes, **dd) if num_classes else nn.Identity()
        if num_classes:
            _init(self.head)
        self.head.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in training: each block is run again in the backward pass."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone beside biases, norms and scales: none."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, for layer-wise learning rates."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(?:blocks\.(\d+)|downsample)"
        return {"stem": r"^stem", "blocks": [(blocks, None), (r"^norm", (99999,))]}

    def _normalised(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_size(size: tuple[int, ...]) -> None:
    if len(size) != 2 or any(n < STRIDE or n % STRIDE for n in size):
        raise UserError(
            f"HViR reads pictures whose sides are multiples of {STRIDE} pixels, not {' x '.join(map(str, size))};"
            " resize or pad them"
        )
