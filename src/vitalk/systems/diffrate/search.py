"""Training mode: every token stays in place behind a mask, so that the counts have gradients."""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from timm.models.metaformer import MetaFormerBlock
from timm.models.vision_transformer import Block
from torch import Tensor

from vitalk.vision.tokens import TokenReducer, Tokens, add_attention, add_mlp, attend, flat, take

from .attention import meta_attention, meta_mlp, open_attention
from .caformer import merge_block
from .method import absorb, compress, nearest, shrunk
from .proxy import Proxy
from .schedule import Step


@dataclass(frozen=True)
class Living(Tokens):
    """Tokens of which some are dead: behind the mask, but still there.

    mask: [batch, tokens], 1 for live and 0 for dead tokens, with the gradients of the proxies. alive: how many are
    live; they come first. own, home: [batch, tokens], where the token of each original position is now, and where the
    live one that holds it; the last two are for hierarchical networks, which put the picture together again.
    """

    mask: Tensor | None = None
    alive: int = 0
    own: Tensor | None = None
    home: Tensor | None = None

    @classmethod
    def all_of(cls, tokens: Tokens) -> Self:
        """``tokens``, all of them alive and of size 1."""
        batch, count = tokens.features.shape[:2]
        ones = tokens.features.new_ones(batch, count, dtype=torch.float32)
        places = torch.arange(count, device=ones.device).expand(batch, -1)
        return cls(tokens.features, ones, None, ones, count, places, places)

    def restored(self) -> Tensor:
        """[batch, positions, dim]: at each position its own token, or the one that it went into.

        The mask mixes the two, which carries the gradients on.
        """
        alive = take(self.mask, self.own)[..., None].to(self.features.dtype)
        return alive * take(self.features, self.own) + (1 - alive) * take(self.features, self.home)


class Rates(TokenReducer):
    """A block's proxies, and what they do to its tokens; the base of those for ViT blocks and CAFormer blocks.

    entering: tokens that the stage starts with. prefix: those never ranked. granularity: step between candidates.
    kinds: which proxies there are. held: nothing is to be compressed; the proxies have a single candidate.

    In eval mode tokens really go, as many as the proxies say now.
    """

    needs = frozenset({"class_attention"})

    def __init__(
        self, entering: int, prefix: int, granularity: int, kinds: tuple[Literal["prune", "merge"], ...], held: bool
    ):
        super().__init__()
        step, patches = entering if held else granularity, entering - prefix
        self.prefix, self.barred = prefix, max(prefix, 1)
        self.prune = Proxy(patches, step, prefix) if "prune" in kinds else None
        self.merge = Proxy(patches, step, prefix) if "merge" in kinds else None

    def step(self, there: int) -> Step:
        """What the proxies, as they stand, do to ``there`` tokens."""
        least = self.barred + 1
        pruned = there if self.prune is None else min(there, self.prune.kept(least))
        return Step(there, pruned, pruned if self.merge is None else min(pruned, self.merge.kept(least)))

    def thin(self, tokens: Living, score: Tensor) -> Living:
        """Order the live tokens by score [batch, tokens], and put those that are to go behind the mask."""
        step = self.step(tokens.alive)
        tokens = self._ordered(tokens, score)
        mask = tokens.mask
        if step.pruned < step.entering:
            mask = mask * self.prune.mask(step.entering)
        if step.merged == step.pruned:
            return replace(tokens, mask=mask, alive=step.pruned)
        mask = mask * self.merge.mask(step.pruned)
        return replace(self._merged(tokens, step), mask=mask, alive=step.merged)

    def _ordered(self, tokens: Living, score: Tensor) -> Living:
        # The dead stay behind: only attention that underflows could make a live token look as dead as they are.
        front, alive = self.prefix, tokens.alive
        order = torch.arange(score.shape[1], device=score.device).repeat(score.shape[0], 1)
        order[:, front:alive] = front + score[:, front:alive].argsort(1, descending=True)
        moved = {name: take(getattr(tokens, name), order) for name in ("features", "size", "mask")}
        place = order.argsort(1)  # the inverse
        return replace(tokens, **moved, own=place.gather(1, tokens.own), home=place.gather(1, tokens.home))

    def _merged(self, tokens: Living, step: Step) -> Living:
        kept = tokens.features[:, : step.merged].clone()
        moved = tokens.features[:, step.merged : step.pruned]
        into, cosine = nearest(moved, kept, self.barred)
        size = tokens.size[:, : step.pruned]
        if self.prefix:
            size = torch.cat([size[:, : step.merged], shrunk(size[:, step.merged :], cosine)], 1).clamp(min=1)
        index = flat(into, step.merged)
        whole = size[:, : step.merged].flatten().index_add(0, index, size[:, step.merged :].flatten())
        size = torch.cat([whole.unflatten(0, kept.shape[:2]), size[:, step.merged :], tokens.size[:, step.pruned :]], 1)
        absorb(kept, moved, into)
        redirect = torch.arange(size.shape[1], device=size.device).repeat(size.shape[0], 1)
        redirect[:, step.merged : step.pruned] = into
        features = torch.cat([kept, tokens.features[:, step.merged :]], 1)
        return replace(tokens, features=features, size=size, home=redirect.gather(1, tokens.home))


class BlockRates(Rates):
    """The proxies of a ViT block."""

    def through(self, block: Block, tokens: Tokens) -> Tokens:
        """One block: attention among the live tokens, ranking by the class token's row, reduction, MLP."""
        if not self.training:
            mixed, seen = attend(block.attn, block.norm1(tokens.features), tokens.size, self.needs)
            tokens = add_attention(block, tokens, mixed)
            step = self.step(tokens.features.shape[1])
            return add_mlp(block, compress(tokens, seen.class_attention, step, self.prefix)[0])
        tokens = tokens if isinstance(tokens, Living) else Living.all_of(tokens)
        mixed, attention = open_attention(block.attn, block.norm1(tokens.features), tokens.size, tokens.mask)
        return add_mlp(block, self.thin(add_attention(block, tokens, mixed), attention[:, :, 0].mean(1)))


class MetaBlockRates(Rates):
    """The proxy of a block of a CAFormer's attention stages.

    As released, dead tokens have a say in the ranking while the search lasts, since they are still there to attend.
    """

    def through(self, block: MetaFormerBlock, tokens: Tokens) -> Tokens:
        """One block: attention, ranking by what each token receives from all, merging, MLP."""
        if not self.training:
            return merge_block(block, tokens, self.step(tokens.features.shape[1]))
        tokens = tokens if isinstance(tokens, Living) else Living.all_of(tokens)
        tokens, received = meta_attention(block, tokens, tokens.mask)
        return meta_mlp(block, self.thin(tokens, received))
