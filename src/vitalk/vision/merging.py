"""Merging tokens that are alike: matchings, what they do to features, sizes and sources, and ToMe.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461, is the baseline of the systems that
merge, and the form that they share: a score for each pair, a matching, a weighted mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vitalk.errors import UserError

from .tokens import Attended, TokenReducer, Tokens, Trunk, flat, require_plain, take


@dataclass(frozen=True)
class Merge:
    """Which tokens stay, in their new order, and into which of these the others go.

    kept: [batch, kept], positions of the tokens that stay. moved: [batch, moved], positions of the others; tokens in
    neither are dropped. into: [batch, moved], places among the kept.
    """

    kept: Tensor
    moved: Tensor
    into: Tensor

    def sums(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """x [batch, tokens, ...] -> [batch, kept, ...], each token that stays plus those that went into it.

        weight: [batch, tokens], by which all are multiplied first.
        """
        kept, moved = take(x, self.kept), take(x, self.moved)
        if weight is not None:
            kept, moved = _scale(kept, take(weight, self.kept)), _scale(moved, take(weight, self.moved))
        if x.dim() == 2:
            return kept.scatter_add(1, self.into, moved)
        index = flat(self.into, kept.shape[1])
        return kept.flatten(0, 1).index_add(0, index, moved.flatten(0, 1)).unflatten(0, kept.shape[:2])

    def mean(self, x: Tensor, weight: Tensor, whole: Tensor | None = None) -> Tensor:
        """x [batch, tokens, ...] -> [batch, kept, ...], means weighted by ``weight`` [batch, tokens].

        whole: ``sums(weight)``, where it is known.
        Each token that stays moves towards those that went into it by their share of the weight: one pass over the
        tokens that stay, and the rest on those few that move.
        """
        whole = self.sums(weight) if whole is None else whole
        kept, share = take(x, self.kept), take(weight, self.moved) / take(whole, self.into)
        rows, index = kept.flatten(0, 1), flat(self.into, kept.shape[1])
        step = take(x, self.moved).flatten(0, 1) - rows.index_select(0, index)
        return rows.index_add_(0, index, _scale(step, share.flatten())).unflatten(0, kept.shape[:2])

    def unmerge(self, x: Tensor) -> Tensor:
        """x [batch, kept, ...] -> [batch, kept + moved, ...] in the old order, merged tokens as what they went into.

        Only where no token was dropped.
        """
        batch, tokens = x.shape[0], self.kept.shape[1] + self.moved.shape[1]
        origin = torch.arange(self.kept.shape[1], device=x.device).expand(batch, -1)
        where = torch.empty(batch, tokens, dtype=self.kept.dtype, device=x.device)
        where = where.scatter(1, self.kept, origin).scatter(1, self.moved, self.into)
        return take(x, where)


def apply_merge(tokens: Tokens, merge: Merge, weight: Tensor | None = None) -> Tokens:
    """The tokens after ``merge``: features and sources are means weighted by ``weight``, sizes are sums.

    weight: [batch, tokens]; None weighs by size.
    """
    x = tokens.features
    size = torch.ones(x.shape[:2], dtype=x.dtype, device=x.device) if tokens.size is None else tokens.size
    sizes = merge.sums(size)
    weight, whole = (size, sizes) if weight is None else (weight, merge.sums(weight))
    source = None if tokens.source is None else merge.mean(tokens.source, weight, whole)
    return replace(tokens, features=merge.mean(x, weight, whole), size=sizes, source=source)


def cosines(metric: Tensor) -> Tensor:
    """Cosines of the tokens at even and those at odd positions: [batch, tokens, width] -> [batch, even, odd]."""
    unit = F.normalize(metric, dim=-1)
    return unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)


def protect(scores: Tensor, prefix: int) -> Tensor:
    """``scores`` [batch, even, odd] with minus infinity in the rows and columns of the ``prefix`` leading tokens."""
    rows, columns = -(-prefix // 2), prefix // 2
    inner = scores[:, rows:, columns:]
    return F.pad(inner, (columns, 0, rows, 0), value=float("-inf")) if prefix else scores


def mergeable(tokens: int, prefix: int, count: int) -> int:
    """How many of ``tokens`` can be merged when ``count`` are wanted: half of those that are no prefix, at most."""
    return max(0, min(count, (tokens - prefix) // 2))


def bipartite(scores: Tensor, count: int, prefix: int = 0) -> Merge:
    """Bipartite soft matching (arXiv 2210.09461, section 3.2): the ``count`` best matched even tokens go into odd ones.

    scores: [batch, even, odd] with minus infinity for the prefix tokens. Order of the kept: prefix tokens, even tokens
    by position (by falling score without a prefix, as in the release), odd tokens.
    """
    best, match = scores.max(-1)
    order = best.argsort(-1, descending=True)
    moved, left = order[:, :count], order[:, count:]
    if prefix:
        left = left.sort(1).values
    odd = torch.arange(scores.shape[2], device=scores.device).expand(scores.shape[0], -1)
    kept = prefix_first(2 * left, 2 * odd + 1, prefix)
    return Merge(kept, 2 * moved, left.shape[1] + match.gather(1, moved))


def prefix_first(even: Tensor, odd: Tensor, prefix: int) -> Tensor:
    """Positions of even tokens [batch, even], then of odd ones [batch, odd], but the prefix tokens in front of all.

    The places of all odd tokens but the prefix are the same either way: behind as many even ones.
    """
    if prefix < 2:
        return torch.cat([even, odd], 1)
    rows, columns = -(-prefix // 2), prefix // 2
    head = torch.arange(prefix, device=even.device).expand(even.shape[0], -1)
    return torch.cat([head, even[:, rows:], odd[:, columns:]], 1)


class MergeAlike(TokenReducer):
    """ToMe's reducer: between attention and MLP, the ``count`` pairs of tokens with the most similar keys are merged.

    The keys are averaged over the heads. prefix: leading tokens that stay. proportional: keys weigh as much as their
    tokens are large (ToMe leaves it off for MAE off the shelf).
    Raises UserError for a negative count.
    """

    def __init__(self, count: int, prefix: int = 1, proportional: bool = True):
        super().__init__()
        if count < 0:
            raise UserError(f"the number of tokens to merge in a block must not be negative, got {count}")
        self.count, self.prefix, self.proportional = count, prefix, proportional

    @property
    def needs(self) -> frozenset[str]:
        """Keys, where there is something to merge."""
        return frozenset({"keys"}) if self.count else frozenset()

    def forward(self, tokens: Tokens, seen: Attended) -> Tokens:
        """``count`` tokens fewer, or as many fewer as there are pairs."""
        count = mergeable(tokens.features.shape[1], self.prefix, self.count)
        if not count:
            return tokens
        with torch.no_grad():
            merge = bipartite(protect(cosines(seen.keys.mean(1)), self.prefix), count, self.prefix)
        return apply_merge(tokens, merge)

    def extra_repr(self) -> str:
        """What the printed module shows."""
        return f"count={self.count}, prefix={self.prefix}"


def tome(vit: VisionTransformer, r: int | Sequence[int], inflect: float = 0.0, proportional: bool = True) -> Trunk:
    """The model ``vit``, of which every block merges ``r`` pairs of tokens.

    r: one number for all blocks, or one a block. inflect: how the number changes with depth, in [-1, 1]: -1 falls from
    2 r to 0, 1 rises from 0 to 2 r. Works with and without a class token; the mean over patches is weighted by size.
    Raises UserError for models of another kind and numbers that mean nothing.
    """
    require_plain(vit)
    counts = schedule(len(vit.blocks), r, inflect)
    return Trunk(vit, [MergeAlike(count, vit.num_prefix_tokens, proportional) for count in counts])


def schedule(depth: int, r: int | Sequence[int], inflect: float = 0.0) -> list[int]:
    """Pairs to merge by block: ``r`` as in ``tome``; a list that is too short goes on with zeros.

    Raises UserError for negative numbers, more numbers than blocks, and an inflection outside [-1, 1].
    """
    if not isinstance(r, int):
        if len(r) > depth or min(r, default=0) < 0:
            raise UserError(f"r must be up to {depth} numbers, one a block, none negative; got {list(r)}")
        return [*r, *[0] * (depth - len(r))]
    if r < 0 or not -1 <= inflect <= 1:
        raise UserError(f"r must not be negative and inflect must be in [-1, 1], got {r} and {inflect}")
    first = int(r * (1 - inflect))
    step = 2 * (r - first) / max(depth - 1, 1)
    return [int(first + step * block) for block in range(depth)]


def _scale(x: Tensor, by: Tensor) -> Tensor:
    """x [..., dim, ...] times one number for each of its leading indices."""
    return x * by.reshape(*by.shape, *[1] * (x.dim() - by.dim())).to(x.dtype)
