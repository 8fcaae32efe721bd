"""Token slimming: the module, its reverse, and the trunk around a vision transformer."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from timm.layers import Mlp, trunc_normal_
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.vision.tokens import Attended, TokenReducer, Tokens, Trunk, require_plain

from .checkpoint import sit_filter


class Unslimmed(TokenReducer):
    """Keeps all tokens; attention minds no sizes, as in the paper."""

    proportional = False


class TokenSlimming(TokenReducer):
    """The token slimming module, TSM (arXiv 2111.12624): each token that goes on is a mean of all patches.

    The weights of these means come from the patches themselves: a small MLP gives each patch a score for each of the
    ``count`` new tokens, and the softmax over the patches, sharpened by a learned scale, makes them sum to one. It
    knows no positions and takes any number of patches. It acts after the block, unlike most reducers.

    dim: of the tokens. count: patches that go on. prefix: leading tokens that stay.
    ``Tokens.size`` (ours): each patch is divided among the new tokens in proportion to their weights of it, so that
    sizes go on adding up to the number of patches; models that pool by the mean weigh by it.
    """

    proportional = False

    def __init__(self, dim: int, count: int, prefix: int = 1):
        super().__init__()
        self.count, self.prefix = count, prefix
        self.weight = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, count))
        self.scale = nn.Parameter(torch.ones(1, 1, 1))
        self.apply(_narrow)

    def mix(self, patches: Tensor) -> Tensor:
        """Patches [batch, patches, dim] -> their weights in the new tokens [batch, count, patches]; rows sum to one."""
        return (self.weight(patches) * self.scale).softmax(1).transpose(1, 2)

    def forward(self, tokens: Tokens, seen: Attended) -> Tokens:
        """[prefix, ``count`` mixtures]."""
        mix = self.mix(tokens.features[:, self.prefix :])

        def slim(x: Tensor) -> Tensor:
            return torch.cat([x[:, : self.prefix], mix.to(x.dtype) @ x[:, self.prefix :]], 1)

        source = None if tokens.source is None else slim(tokens.source)
        return Tokens(slim(tokens.features), self._sizes(tokens, mix), source)

    def through(self, block: Block, tokens: Tokens) -> Tokens:
        """The whole block, then ``forward``."""
        return self(Tokens(block(tokens.features), tokens.size, tokens.source), Attended())

    def _sizes(self, tokens: Tokens, mix: Tensor) -> Tensor:
        size = tokens.size
        if size is None:
            size = torch.ones_like(tokens.features[:, :, 0])
        # A patch that all new tokens forget, to the last bit, has no share to give.
        share = size[:, self.prefix :] / mix.sum(1).clamp_min(torch.finfo(mix.dtype).tiny)
        return torch.cat([size[:, : self.prefix], (mix * share[:, None]).sum(2).to(size.dtype)], 1)

    def extra_repr(self) -> str:
        """What the printed module shows."""
        return f"count={self.count}, prefix={self.prefix}"


class ReverseSlimming(nn.Module):
    """The reverse token slimming module, RTSM (arXiv 2111.12624): all patches, guessed from the slimmed ones.

    For training alone. dim: of the tokens. count: patches that come in. full: patches that go out, both fixed.
    """

    def __init__(self, dim: int, count: int, full: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mlp1 = Mlp(count, 4 * full, full)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp2 = Mlp(dim, 4 * dim)
        self.apply(_narrow)

    def forward(self, patches: Tensor) -> Tensor:
        """[batch, count, dim] -> [batch, full, dim]: an MLP along tokens, then a residual one along channels."""
        x = self.mlp1(self.norm1(patches).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp2(self.norm2(x))


class SiT(Trunk):
    """A slimmed vision transformer: a ``Trunk`` that loads the official checkpoints and shows training its layers."""

    checkpoint_filter_fn = staticmethod(sit_filter)

    @property
    def slimmed_blocks(self) -> list[int]:
        """The blocks, from 0, that a slimming module follows."""
        return [i for i, reducer in enumerate(self.reducers) if isinstance(reducer, TokenSlimming)]

    def patch_counts(self) -> list[int]:
        """The number of patch tokens that leave each block, slimming included."""
        counts = [self.vit.patch_embed.num_patches]
        for reducer in self.reducers:
            counts.append(getattr(reducer, "count", counts[-1]))
        return counts[1:]

    def observe(self, images: Tensor) -> tuple[Tensor | tuple[Tensor, Tensor], list[Tensor]]:
        """images [batch, channels, height, width] -> what the head says and the patch tokens that leave each block.

        The head says logits [batch, classes], or a pair of them while a distillation token trains. The patch tokens
        are [batch, patches, dim], not normalised, with as many as ``patch_counts`` says.
        """
        layers = list(self.walk(images))[1:]
        last = replace(layers[-1], features=self.vit.norm(layers[-1].features))
        patches = [tokens.features[:, self.num_prefix_tokens :] for tokens in layers]
        return self.classify(last), patches


def sit(vit: VisionTransformer, keep: float = 0.5, stage_blocks: Sequence[int] | None = None) -> SiT:
    """The model ``vit`` in stages, each of which goes on with the share ``keep`` of the patches of the one before.

    stage_blocks: blocks of each stage, [9, 3, 2, 2] in SiT-S; None divides any depth in about that proportion (ours).
    Stage i, from 0, sees int(patches * keep^i) of them; class, distillation and register tokens always stay. The new
    modules have random weights: train them (``training.SlimmingClassifier``). keep 1 adds none: the plain model.
    Works without a class token too: a mean over patches minds the tokens' sizes.

    Raises UserError for models of another kind, a share outside (0, 1], and stages that do not add up to the depth or
    would leave no patch.
    """
    require_plain(vit)
    depth = len(vit.blocks)
    stages = default_stages(depth) if stage_blocks is None else list(stage_blocks)
    if any(blocks < 1 or blocks != int(blocks) for blocks in stages) or sum(stages) != depth:
        raise UserError(
            f"stage_blocks {stages} must be whole numbers from 1 that add up to the model's {depth} blocks,"
            f" as {default_stages(depth)}"
        )
    counts = stage_counts(vit.patch_embed.num_patches, keep, len(stages))
    reducers: list[TokenReducer] = [Unslimmed() for _ in range(depth)]
    like = next(vit.parameters())
    for end, count in zip(accumulate(stages), counts[1:], strict=False):
        if keep < 1:
            reducers[end - 1] = TokenSlimming(vit.embed_dim, count, vit.num_prefix_tokens).to(like.device, like.dtype)
    return SiT(vit, reducers)


def stage_counts(patches: int, keep: float, stages: int) -> list[int]:
    """Patches that each stage sees: 196, 98, 49, 24 for 196 patches and a half.

    Raises UserError for a share outside (0, 1] and where nothing would be left.
    """
    if not 0 < keep <= 1:
        raise UserError(f"keep must be in (0, 1], got {keep}")
    counts = [int(patches * keep**i) for i in range(stages)]
    if counts[-1] < 1:
        raise UserError(f"keep {keep} leaves {counts} of {patches} patches, none in the end; raise it or drop a stage")
    return counts


def default_stages(depth: int) -> list[int]:
    """SiT-S's 9, 3, 2 and 2 of 16 blocks, for any depth; the proportions are the paper's, the rounding is ours."""
    ends = [0]
    for i, share in enumerate((9, 12, 14, 16)[-min(depth, 4) :]):
        after = min(depth, 4) - 1 - i  # stages to come, with a block each at least
        ends.append(max(ends[-1] + 1, min(round(depth * share / 16), depth - after)))
    return [end - start for start, end in pairwise(ends)]


def _narrow(module: nn.Module) -> None:
    """The official initialisation."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
