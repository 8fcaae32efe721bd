"""Which tokens are fused: attraction by three criteria, matched one way or both."""

import torch
from torch import Tensor

from vitalk.vision.merging import Merge, cosines, mergeable, prefix_first

FLOOR = 10  # tokens, prefix tokens among them, that fusing always leaves
LEAST = 1e-12  # attention that counts as none: never attended tokens would divide by zero

Temperatures = tuple[float, float, float]


def to_fuse(r: float, tokens: int, prefix: int) -> int:
    """How many of ``tokens`` are fused away at ``r``, a share of those that are no prefix below 1, else a number.

    At most half of those that are no prefix, and never so many that fewer than ``FLOOR`` tokens would be left.
    """
    count = int((tokens - prefix) * r) if r < 1 else int(r)
    return mergeable(tokens, prefix, min(count, tokens - FLOOR))


def informativeness(attention: Tensor) -> Tensor:
    """Attention that each token receives, averaged over heads and queries: [batch, heads, tokens, tokens] ->
    [batch, tokens], positive, in float32 at least.
    """
    precise = torch.promote_types(attention.dtype, torch.float32)
    return attention.mean((1, 2), dtype=precise).clamp_min(LEAST)


def attraction(x: Tensor, informed: Tensor, size: Tensor | None, temperatures: Temperatures = (1, 20, 40)) -> Tensor:
    """How much the tokens at even and those at odd positions attract each other: [batch, even, odd].

    A product of three criteria, each raised to one over its temperature (arXiv 2403.10030, section 3): alike,
    uninformative and small tokens attract each other. A temperature of 0 leaves its criterion out. Right up to a factor
    for each picture: the paper scales every criterion to at most 1, which changes no order.

    x: [batch, tokens, dim]. informed: [batch, tokens], ``informativeness``. size: [batch, tokens], None for all alike.
    temperatures: of similarity, informativeness and size.
    """
    alike, uninformative, small = temperatures
    pull = informed ** (-1 / uninformative) if uninformative else torch.ones_like(informed)
    if small and size is not None:
        pull = pull * size ** (-1 / small)
    if alike == 1:  # cosines, ones and the products of pulls in one matrix product
        scale = pull / torch.linalg.vector_norm(x, dim=2).clamp_min(1e-12)
        joint = torch.cat([x * scale[..., None], pull[..., None]], 2)
        return joint[:, ::2] @ joint[:, 1::2].transpose(1, 2)
    pairs = pull[:, ::2, None] * pull[:, None, 1::2]
    # A cosine may fall short of -1 by rounding, and a root of the sum would be no number.
    return pairs * (cosines(x) + 1).clamp_min(0) ** (1 / alike) if alike else pairs


def two_way(scores: Tensor, count: int, prefix: int = 0) -> Merge:
    """Bidirectional matching (arXiv 2403.10030, section 3): half of ``count`` even tokens go into their best odd ones,
    then the other half, odd tokens, into their best among the even ones that are left.

    An odd token that goes on takes along what went into it. The second direction sees the scores of the first.
    scores: [batch, even, odd] with minus infinity for the prefix tokens; count: up to half of the others. Order of the
    kept: prefix tokens, even tokens by position (by falling score without a prefix), odd tokens by falling score.
    """
    best, match = scores.max(2)
    moved, left = best.argsort(1, descending=True).tensor_split([count // 2], 1)
    if prefix:
        left = left.sort(1).values
    best, place = scores.gather(1, left[..., None].expand(-1, -1, scores.shape[2])).max(1)
    gone, stay = best.argsort(1, descending=True).tensor_split([count - count // 2], 1)
    if prefix > 1:
        stay = stay.sort(1).values  # the prefix tokens among them in front
    behind = torch.arange(left.shape[1], left.shape[1] + stay.shape[1], device=scores.device)
    # Of the prefix tokens all stand in front, those at odd positions too.
    place = (place + prefix // 2).scatter(1, stay, behind.expand_as(stay))
    into = place.gather(1, torch.cat([match.gather(1, moved), gone], 1))
    return Merge(prefix_first(2 * left, 2 * stay + 1, prefix), torch.cat([2 * moved, 2 * gone + 1], 1), into)
