"""DiffRate in the attention stages of a CAFormer, whose tokens come back together before each downsampling."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from timm.models.metaformer import MetaFormer, MetaFormerBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitalk.vision.merging import Merge
from vitalk.vision.tokens import TokenReducer, Tokens, take

from .attention import meta_attention, meta_mlp
from .checkpoint import convert
from .geometry import Geometry
from .method import check_entering, compress
from .schedule import Schedule, Step


@dataclass(frozen=True)
class Merging(Tokens):
    """Tokens that know how they were merged. trail: since the stage began, the first merge first."""

    trail: tuple[Merge, ...] = ()

    def restored(self) -> Tensor:
        """[batch, positions, dim]: at each position of the stage the token that holds it now."""
        batch, count = self.features.shape[:2]
        places = torch.arange(count, device=self.features.device).expand(batch, -1)
        for merge in reversed(self.trail):
            places = merge.unmerge(places)
        return take(self.features, places)


class MergeByMass(TokenReducer):
    """Merges the tokens of a CAFormer block that receive the least attention into what is like them."""

    def __init__(self, step: Step):
        super().__init__()
        self.step = step

    def through(self, block: MetaFormerBlock, tokens: Tokens) -> Tokens:
        """One block: attention, ranking by what each token receives from all, merging, MLP."""
        check_entering(tokens.features.shape[1], self.step)
        return merge_block(block, tokens, self.step)


def merge_block(block: MetaFormerBlock, tokens: Tokens, step: Step) -> Merging:
    """One block of CAFormer that merges as ``step`` says."""
    tokens, received = meta_attention(block, tokens)
    trail = tokens.trail if isinstance(tokens, Merging) else ()
    fewer, merge = compress(Tokens(tokens.features, tokens.size), received, step, prefix=0)
    return meta_mlp(block, Merging(fewer.features, fewer.size, None, (*trail, merge)))


class DiffRateCAFormer(MetaFormer):
    """A timm CAFormer with one reducer for each block of its attention stages.

    It holds the very modules of ``model`` under their own names, so that checkpoints of one load into the other. What
    goes to the head is the mean of the tokens that are left, not weighted by size, as released (nothing published
    merges in the last stage).

    reducers: in the order of the blocks. schedule: what they were made for, None for proxies.
    """

    checkpoint_filter_fn = staticmethod(convert)

    def __init__(
        self, model: MetaFormer, reducers: Sequence[TokenReducer], shape: Geometry, schedule: Schedule | None = None
    ):
        nn.Module.__init__(self)  # nothing is built: attributes and modules are those of ``model``
        for name, value in vars(model).items():
            if not name.startswith("_"):
                setattr(self, name, value)
        for name, module in model.named_children():
            setattr(self, name, module)
        self.reducers = nn.ModuleList(reducers)
        self.shape, self.schedule = shape, schedule

    def walk(self, images: Tensor) -> Iterator[Tokens]:
        """The tokens that leave each block of the attention stages.

        images: [batch, channels, height, width].
        """
        x, reducers = self.stem(images), iter(self.reducers)
        tokens = None
        for stage in self.stages:
            if stage.use_nchw:
                x = stage(x)
                continue
            if tokens is not None:
                x = tokens.restored().transpose(1, 2).unflatten(2, x.shape[2:])
            x = stage.downsample(x)
            tokens = Tokens(x.flatten(2).transpose(1, 2))
            for block, reducer in zip(stage.blocks, reducers, strict=False):
                if stage.grad_checkpointing and torch.is_grad_enabled():
                    tokens = checkpoint(reducer.through, block, tokens, use_reentrant=False)
                else:
                    tokens = reducer.through(block, tokens)
                yield tokens

    def forward_features(self, images: Tensor) -> Tensor:
        """images [batch, channels, height, width] -> the mean of the last tokens, [batch, dim, 1, 1]."""
        for tokens in self.walk(images):
            last = tokens
        return last.features.mean(1)[..., None, None]
