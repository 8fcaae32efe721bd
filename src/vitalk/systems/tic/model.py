"""TiC: a hierarchical classifier of MSA-Conv blocks, a timm backbone for pictures of any size."""

from typing import Any, Literal

import torch
from timm.layers import ClassifierHead, LayerNorm2d, calculate_drop_path_rates, get_device_dtype
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vitalk.errors import UserError

from .checkpoint import checkpoint_filter_fn
from .layers import Block, Bottleneck, MSAConv
from .window import Padding, Window


class Stage(nn.Module):
    """Halves the map with a convolution, but for the first stage, and mixes it in blocks.

    [batch, dim before, height, width] -> [batch, dim, half height, half width], odd sizes rounded up.
    """

    def __init__(self, before: int, dim: int, blocks: list[Block], down: bool, **dd: Any) -> None:
        super().__init__()
        convs = (LayerNorm2d(before, **dd), nn.Conv2d(before, dim, 3, stride=2, padding=1, **dd))
        self.downsample = nn.Sequential(*convs) if down else nn.Identity()
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.downsample(x)
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class TiC(nn.Module):
    """Transformer in convolution (arXiv 2310.04134): a stem, stages of MSA-Conv blocks, a mean and a linear layer.

    The paper's architecture is not public in numbers: the arrangement, the sizes and the defaults are ours.
    No part knows how large pictures are, so that one network reads all sizes, square or not, those that do not divide
    rounded up; positions are seen by the 3 x 3 convolutions of the stem and between stages, which pad with zeros.

    stem_stride: 1, 2 or 4 pixels a position in the first stage. widths, depths: channels and blocks of each stage;
    each halves the map of the one before. kernel_size, dilations: of the windows; dilations take turns in a stage.
    head_dim: channels a head. mixer: "msa", or "conv" for a convolution with the same window and as many parameters.
    shift, pool: the two devices of ``MSAConv``, the shift by half a window, its directions moving on with each block.
    padding: see ``Window``; "masked" by default, as zeros would outweigh the map in the small last stages.
    Further arguments are timm's. Raises UserError for stages, strides and heads that do not fit.
    """

    checkpoint_filter_fn = staticmethod(checkpoint_filter_fn)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        stem_stride: int = 4,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        depths: tuple[int, ...] = (2, 2, 6, 2),
        kernel_size: int | tuple[int, int] = 7,
        dilations: tuple[int, ...] = (1, 2),
        head_dim: int = 32,
        mlp_ratio: float = 4.0,
        mixer: Literal["msa", "conv"] = "msa",
        shift: bool = True,
        pool: bool = True,
        padding: Padding = "masked",
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(stem_stride, widths, depths, dilations, head_dim, mixer)
        dd = {"device": device, "dtype": dtype}
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate

        def mix(dim: int, dilation: int, direction: int) -> nn.Module:
            window = Window(kernel_size, dilation, padding)
            if mixer == "conv":
                return Bottleneck(dim, window, **dd)
            step = max(window.kernel) // 2 if shift else 0
            attn = MSAConv(
                dim, kernel_size, dilation, dim // head_dim, padding, attn_drop_rate, step, direction, pool, **dd
            )
            return nn.Sequential(attn, nn.Conv2d(dim, dim, 1, **dd), nn.Dropout(proj_drop_rate))

        self.stem = _stem(in_chans, widths[0], stem_stride, **dd)
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages, self.feature_info = [], []
        for i, dim in enumerate(widths):
            first = sum(depths[:i])
            blocks = [
                Block(dim, mix(dim, dilations[j % len(dilations)], first + j), mlp_ratio, proj_drop_rate, rate, **dd)
                for j, rate in enumerate(rates[i])
            ]
            stages.append(Stage(widths[max(i - 1, 0)], dim, blocks, down=i > 0, **dd))
            self.feature_info.append({"num_chs": dim, "reduction": stem_stride * 2**i, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        self.num_features = self.head_hidden_size = widths[-1]
        self.norm = LayerNorm2d(widths[-1], **dd)
        self.head = ClassifierHead(widths[-1], num_classes, global_pool, drop_rate, **dd)

    def forward_features(self, x: Tensor) -> Tensor:
        """images [batch, channels, height, width] -> normalised map [batch, width, rows, columns]."""
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map of features -> logits [batch, classes]; pre_logits: its mean [batch, width]."""
        return self.head(x, pre_logits=pre_logits)

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
        """Features and the maps of the stages ``indices``: arguments and results are those of timm's ConvNeXt."""
        if output_fmt != "NCHW":
            raise UserError(f"output_fmt must be NCHW, got {output_fmt}")
        wanted, last = feature_take_indices(len(self.stages), indices)
        kept, x = [], self.stem(x)
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in wanted:
                kept.append(self.norm(x) if norm and i == len(self.stages) - 1 else x)
        if intermediates_only:
            return kept
        return self.norm(x) if i == len(self.stages) - 1 else x, kept

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the maps of the stages ``indices`` do not need; the stages that are kept."""
        wanted, last = feature_take_indices(len(self.stages), indices)
        shorter = last < len(self.stages) - 1
        if prune_norm or shorter:  # the norm is as wide as the last stage
            self.norm = nn.Identity()
        self.stages = self.stages[: last + 1]
        if shorter:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or shorter:
            self.reset_classifier(0, "")
        return wanted

    def get_classifier(self) -> nn.Module:
        """The linear layer of the head."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Another head, untrained; 0 classes for none, global_pool "" for the whole map."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute blocks again in the backward pass instead of keeping what they held."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Nothing by name: norms and biases are left out by their shape, and there are no tables."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How layers follow one another, for learning rates that decay from layer to layer."""
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}


def _stem(in_chans: int, dim: int, stride: int, **dd: Any) -> nn.Sequential:
    """3 x 3 convolutions that each halve the picture, or a single one that does not."""
    if stride < 4:
        return nn.Sequential(nn.Conv2d(in_chans, dim, 3, stride=stride, padding=1, **dd), LayerNorm2d(dim, **dd))
    return nn.Sequential(
        nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, **dd),
        LayerNorm2d(dim // 2, **dd),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, **dd),
        LayerNorm2d(dim, **dd),
    )


def _check(
    stem_stride: int,
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    dilations: tuple[int, ...],
    head_dim: int,
    mixer: str,
) -> None:
    if stem_stride not in (1, 2, 4):
        raise UserError(f"the stem has a stride of 1, 2 or 4 pixels, not {stem_stride}")
    if not widths or len(widths) != len(depths) or min(depths) < 1:
        raise UserError(f"each stage needs a width and a depth of 1 or more, not widths {widths} and depths {depths}")
    if not dilations:
        raise UserError("dilations must name at least one; pass (1,) for windows without gaps")
    if mixer not in ("msa", "conv"):
        raise UserError(f"mixer must be msa or conv, not {mixer}")
    if mixer == "msa" and (head_dim < 1 or any(width % head_dim for width in widths)):
        raise UserError(f"widths {widths} do not divide into heads of {head_dim} channels; change one of them")
