"""The MCTF reducer and the model around it."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from vitalk.errors import UserError
from vitalk.nn.precision import full_precision
from vitalk.vision.merging import Merge, apply_merge, bipartite, protect
from vitalk.vision.tokens import TokenReducer, Tokens, Trunk, add_attention, add_mlp, attend, require_plain

from .attention import attend_ahead, attention_map, largest
from .matching import Temperatures, attraction, informativeness, to_fuse, two_way

Mode = Literal["ahead", "precise", "after"]
Pooling = Literal["size", "informative", "max", "mean"]


class FuseTokens(TokenReducer):
    """Fuses the pairs of tokens that attract each other most, by three criteria (arXiv 2403.10030, section 3).

    r: tokens that go, a share of those that are no prefix below 1, else a number; see ``to_fuse`` for its limits.
    prefix: leading tokens that always stay as they are.
    temperatures: of similarity, informativeness and size in the attraction; 0 leaves one out.
    bidirectional: half of the tokens move each way; else all from even to odd positions, as in ToMe.
    mode: "ahead" (1 in the release) fuses before the values with the attention map of all tokens, which then serves
    the fused ones; "precise" (2) does too, but computes attention anew; "after" (0) fuses after the MLP.
    pooling: fused tokens are means weighted by "size" (0), by size and informativeness (1) or alike ("mean", 3), or
    maxima (2). proportional: keys weigh as much as their tokens are large; in "ahead" before fusing.
    Raises UserError for numbers and names that mean nothing.
    """

    def __init__(
        self,
        r: float,
        prefix: int = 1,
        temperatures: Temperatures = (1, 20, 40),
        bidirectional: bool = True,
        pooling: Pooling = "informative",
        mode: Mode = "ahead",
        proportional: bool = True,
    ):
        super().__init__()
        self.r, self.prefix = valid_r(r), prefix
        self.temperatures = valid_temperatures(temperatures)
        for name, value, known in (("mode", mode, Mode), ("pooling", pooling, Pooling)):
            if value not in get_args(known):
                raise UserError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
        self.bidirectional, self.pooling, self.mode, self.proportional = bidirectional, pooling, mode, proportional

    def at(self, r: float) -> "FuseTokens":
        """The same reducer with another ``r``."""
        other = copy.copy(self)
        other.r = valid_r(r)
        return other

    def through(self, block: Block, tokens: Tokens) -> Tokens:
        """One pre-norm block with the fusion at the place that ``mode`` says; a plain one where nothing is fused."""
        count = to_fuse(self.r, tokens.features.shape[1], self.prefix)
        if not count:
            return super().through(block, tokens)
        size = tokens.size if self.proportional else None
        if self.mode == "after":
            mixed, seen = attend(block.attn, block.norm1(tokens.features), size, frozenset({"attention"}))
            tokens = add_mlp(block, add_attention(block, tokens, mixed))
            return self.fuse(tokens, *self.match(tokens, seen.attention, count))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.mode == "ahead"):
            attention = attention_map(block.attn, block.norm1(tokens.features), size)
        merge, weight = self.match(tokens, attention, count)
        fused = self.fuse(tokens, merge, weight)
        if self.mode == "precise":
            return super().through(block, fused)
        mixed = attend_ahead(block.attn, block.norm1(fused.features), attention, merge, weight)
        return add_mlp(block, add_attention(block, fused, mixed))

    @torch.no_grad()
    def match(self, tokens: Tokens, attention: Tensor, count: int) -> tuple[Merge, Tensor | None]:
        """Which ``count`` tokens go where, and what each weighs in its group [batch, tokens]; None for maxima.

        attention: [batch, heads, tokens, tokens].
        """
        with full_precision(attention):
            informed = informativeness(attention)
            size = None if tokens.size is None else tokens.size.to(informed.dtype)
            scores = protect(self.rank(tokens.features.to(informed.dtype), informed, size), self.prefix)
            merge = (two_way if self.bidirectional else bipartite)(scores, count, self.prefix)
            if self.pooling == "max":
                return merge, None
            if self.pooling == "informative":
                return merge, informed if size is None else informed * size
            return merge, torch.ones_like(informed) if size is None or self.pooling == "mean" else size

    def rank(self, x: Tensor, informed: Tensor, size: Tensor | None) -> Tensor:
        """Scores [batch, even, odd] of all pairs, the highest of which are fused; arguments as in ``attraction``."""
        return attraction(x, informed, size, self.temperatures)

    def fuse(self, tokens: Tokens, merge: Merge, weight: Tensor | None) -> Tokens:
        """The tokens after ``merge``: means weighted by ``weight``, or maxima, whose sources count alike (ours)."""
        if weight is not None:
            return apply_merge(tokens, merge, weight)
        alike = tokens.features.new_ones(tokens.features.shape[:2])
        return replace(apply_merge(tokens, merge, alike), features=largest(tokens.features, merge))

    def extra_repr(self) -> str:
        """What the printed module shows."""
        return f"r={self.r}, prefix={self.prefix}, mode={self.mode}"


def mctf(
    vit: VisionTransformer,
    r: float = 16,
    blocks: Sequence[int] | None = None,
    temperatures: Temperatures = (1, 20, 40),
    bidirectional: bool = True,
    pooling: Pooling = "informative",
    mode: Mode = "ahead",
    proportional: bool = True,
) -> Trunk:
    """The model ``vit`` with its tokens fused in the given blocks, from 0; all but the first where None.

    The other arguments are those of ``FuseTokens``. Works with and without a class token; the mean over patches is
    weighted by size. Raises UserError for models of another kind, blocks that do not exist, and numbers that mean
    nothing.
    """
    require_plain(vit)
    depth = len(vit.blocks)
    chosen = range(1, depth) if blocks is None else blocks
    if missing := [block for block in chosen if not 0 <= block < depth]:
        raise UserError(f"blocks {missing} do not exist: the model has {depth}, counted from 0")
    fusing = FuseTokens(r, vit.num_prefix_tokens, temperatures, bidirectional, pooling, mode, proportional)
    plain = [TokenReducer() for _ in range(depth)]
    for reducer in plain:
        reducer.proportional = proportional
    return Trunk(vit, [fusing.at(r) if block in chosen else plain[block] for block in range(depth)])


def with_r(model: Trunk, r: float) -> Trunk:
    """The same network, sharing all weights, with another ``r`` in the blocks that fuse; 0 fuses nothing.

    The model itself keeps its own, so both can run at a time. Raises UserError for numbers that mean nothing and
    models that fuse nowhere.
    """
    if not any(isinstance(reducer, FuseTokens) for reducer in model.reducers):
        raise UserError("this model has no blocks that fuse tokens; make one with mctf(vit)")
    reducers = [reducer.at(r) if isinstance(reducer, FuseTokens) else reducer for reducer in model.reducers]
    return Trunk(model.vit, reducers, model.trace)


def valid_r(r: float) -> float:
    """``r``, where it is a share below 1 or a whole number. Raises UserError otherwise."""
    if not 0 <= r < math.inf or (r > 1 and r != int(r)):
        raise UserError(f"r must be a share of the tokens from 0 to 1, or a whole number of tokens, got {r}")
    return r


def valid_temperatures(temperatures: Sequence[float]) -> Temperatures:
    """``temperatures`` as a tuple, where they are three that rank. Raises UserError otherwise."""
    found = tuple(temperatures)
    if len(found) != 3 or not all(0 <= t < math.inf for t in found) or not any(found):
        raise UserError(f"temperatures must be three numbers from 0 up, not all of them 0, got {found}")
    return found
