"""What a network costs as a function of its token counts, differentiable in them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.models.metaformer import Attention as MetaAttention
from timm.models.metaformer import MetaFormer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.vision.cost import count
from vitalk.vision.tokens import require_plain

Counts = Sequence[int] | Sequence[Tensor]


@dataclass(frozen=True)
class Stage:
    """Blocks that hand their tokens on to each other.

    tokens: how many enter the first one, prefix tokens among them. blocks: of each block, the weights of the
    attention's projections, the width of its attention, and the weights of its MLP.
    """

    tokens: int
    blocks: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Geometry:
    """The multiply-accumulates of a network by its token counts (arXiv 2305.17997, section 3.3).

    fixed: those that no token count changes. prefix: tokens in front that are neither counted as patches nor ranked.
    prunes: whether tokens may be dropped; a hierarchical network needs them all again for its next stage.
    held: blocks that the search leaves alone.
    """

    fixed: int
    stages: tuple[Stage, ...]
    prefix: int
    prunes: bool
    held: frozenset[int]

    @property
    def depth(self) -> int:
        """Blocks that can be compressed."""
        return sum(len(stage.blocks) for stage in self.stages)

    @property
    def barred(self) -> int:
        """Leading tokens that never take another one in: the prefix; in CAFormer the first in rank, as released."""
        return max(self.prefix, 1)

    @property
    def entering(self) -> list[int]:
        """By block, the tokens that enter it where nothing is compressed."""
        return [stage.tokens for stage in self.stages for _ in stage.blocks]

    @property
    def starts(self) -> dict[int, int]:
        """First block of each stage -> the tokens that enter it."""
        first = [sum(len(stage.blocks) for stage in self.stages[:n]) for n in range(len(self.stages))]
        return {block: stage.tokens for block, stage in zip(first, self.stages, strict=True)}

    def macs(self, prune: Counts | None, merge: Counts | None) -> Tensor:
        """4 N C^2 + 2 N^2 C before, 8 N C^2 after the reduction of each block, and what is fixed.

        prune, merge: tokens kept by each block, as numbers or as tensors whose gradients are wanted; None for none of
        the kind. Counts above the tokens that there are change nothing; their gradients still count.
        """
        total = torch.tensor(float(self.fixed), dtype=torch.float64)
        given = [counts for counts in (prune, merge) if counts is not None]
        block = 0
        for stage in self.stages:
            tokens = torch.tensor(float(stage.tokens), dtype=torch.float64)
            for projections, width, mlp in stage.blocks:
                total = total + tokens * projections + 2 * tokens**2 * width
                tokens = fewest(tokens, *(torch.as_tensor(counts[block]).cpu().double() for counts in given))
                total, block = total + tokens * mlp, block + 1
        return total

    @property
    def full(self) -> float:
        """MACs where nothing is compressed."""
        return float(self.macs(None, None))

    @property
    def least(self) -> float:
        """MACs of the strongest compression that a search can find: a single patch from its first free block on."""
        one = self.prefix + 1
        return float(self.macs(None, [n if b in self.held else one for b, n in enumerate(self.entering)]))


def fewest(tokens: Tensor, *counts: Tensor) -> Tensor:
    """The least of scalars; the gradient is copied to all of ``counts``, whichever is the least, and not to ``tokens``.

    The release's straight-through minimum: a block whose count is above the live tokens still learns.
    """
    least = torch.stack([tokens, *counts]).amin().detach()
    return least + sum(count - count.detach() for count in counts)


def geometry(model: nn.Module) -> Geometry:
    """The geometry of a timm VisionTransformer with a class token, or of a CAFormer.

    The patch embedding counts for the class token too, as in the release. Patch grids are those of the model's own
    picture size. Raises UserError for models of other kinds.
    """
    return _caformer(model) if isinstance(model, MetaFormer) else _vit(model)


def _vit(vit: VisionTransformer) -> Geometry:
    require_plain(vit)
    others = "tome (vitalk.vision.merging) and mctf compress models that pool their patches"
    if not vit.has_class_token:
        raise UserError(f"DiffRate ranks patches by the class token's attention, and this model has none; {others}")
    if vit.global_pool not in ("token", "avg"):
        raise UserError(f"DiffRate needs global_pool 'token' or 'avg', this model has {vit.global_pool!r}; {others}")
    tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens
    blocks = tuple((_weights(b.attn), b.attn.attn_dim, _weights(b.mlp)) for b in vit.blocks)
    first = next(module for module in vit.patch_embed.modules() if isinstance(module, nn.Conv2d))
    if first is getattr(vit.patch_embed, "proj", None):
        embedding = tokens * first.weight.numel()
    else:
        embedding = count(vit.patch_embed, first.weight.new_zeros(1, first.in_channels, *vit.patch_embed.img_size)).macs
    # The release holds the first block, and of a model that pools patches the last one too.
    held = {0, len(blocks) - 1} if vit.global_pool == "avg" else {0}
    return Geometry(
        embedding + _weights(vit.head), (Stage(tokens, blocks),), vit.num_prefix_tokens, True, frozenset(held)
    )


def _caformer(model: MetaFormer) -> Geometry:
    attends = [all(isinstance(block.token_mixer, MetaAttention) for block in stage.blocks) for stage in model.stages]
    if attends != sorted(attends) or not attends[-1]:
        raise UserError("DiffRate compresses the attention stages of a CAFormer; this MetaFormer has none at its end")
    side = _sides(model)
    fixed = side[0] ** 2 * _weights(model.stem) + _weights(model.head)
    stages: list[Stage] = []
    for n, attention, stage in zip(side, attends, model.stages, strict=True):
        fixed += n**2 * _weights(stage.downsample)
        if attention:
            blocks = ((_weights(b.token_mixer), b.token_mixer.attention_dim, _weights(b.mlp)) for b in stage.blocks)
            stages.append(Stage(n**2, tuple(blocks)))
        else:
            fixed += n**2 * _weights(stage.blocks)
    # Held in the release: first and last block of the first of these stages, all of the last stage.
    depth, last = sum(len(stage.blocks) for stage in stages), len(stages[-1].blocks)
    held = {0} if len(stages) == 1 else {0, *range(depth - last - 1, depth)}
    return Geometry(fixed, tuple(stages), 0, False, frozenset(held))


def _sides(model: MetaFormer) -> list[int]:
    """Tokens along a side of each stage, for the square pictures that the model is made for."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    side = (cfg.get("input_size", (3, 224, 224))[-1] - 3) // 4 + 1  # 7 x 7 kernel, stride 4, padding 2
    sides = [side]
    for stage in model.stages[1:]:
        sides.append(sides[-1] if isinstance(stage.downsample, nn.Identity) else (sides[-1] - 1) // 2 + 1)
    return sides


def _weights(module: nn.Module) -> int:
    """Weights of the matrix products and convolutions in a module, one MAC each at every token."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
