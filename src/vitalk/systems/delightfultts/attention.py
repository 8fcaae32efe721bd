"""Attention that knows places: relative ones between frames, times of phonemes in a recording."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.attention import attend


def sinusoids(place: Tensor, dim: int, base: float = 10_000.0) -> Tensor:
    """Places of any shape, also negative or fractional -> [..., dim]: sine and cosine in turn (arXiv 1706.03762)."""
    column = torch.arange(dim, device=place.device)
    turn = base ** (-2 * torch.div(column, 2, rounding_mode="floor") / dim)
    angle = place[..., None].float() * turn
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())


class RelativeAttention(nn.Module):
    """Multi-head attention whose scores hang on content and distance (Transformer-XL, arXiv 1901.02860, section 3.3).

    dim, heads: width and its parts. wrapped: the form of dunky11/voicesmith, for its weights: scores are divided by
    sqrt(dim) instead of the square root of a head's width, distances count from the end of the sequence, those ahead
    of a query wrap around to the next one's (``wrapped_index``).
    """

    def __init__(self, dim: int, heads: int, wrapped: bool = False):
        super().__init__()
        if dim % heads:
            raise UserError(f"a width of {dim} cannot be split among {heads} heads; choose a multiple")
        self.heads, self.wrapped = heads, wrapped
        self.scale = (dim if wrapped else dim // heads) ** -0.5
        self.query, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key, self.value, self.place = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.content_bias, self.place_bias = (nn.Parameter(torch.empty(heads, dim // heads)) for _ in range(2))
        for bias in (self.content_bias, self.place_bias):
            nn.init.xavier_uniform_(bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        source: Tensor | None = None,
        source_mask: Tensor | None = None,
    ) -> Tensor:
        """x [batch, time, dim] -> the same shape; mask [batch, time]: True where there is something.

        source [batch, other, dim], source_mask: what is looked at, by default x itself; only "wrapped" takes one.
        """
        source, source_mask = (x, mask) if source is None else (source, source_mask)
        query = self.query(x).unflatten(-1, (self.heads, -1))
        key, value = (part(source).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.key, self.value))
        toward = (query + self.place_bias).transpose(1, 2)
        bias = self._wrapped(toward, mask, source, source_mask) if self.wrapped else self._relative(toward)
        content = (query + self.content_bias).transpose(1, 2)
        # In the open: the scores by place are a whole map anyway, so that the fused kernel would save none.
        scores = (content @ key.transpose(2, 3) + bias) * self.scale
        if source_mask is not None:
            scores = scores.masked_fill(~source_mask[:, None, None], float("-inf"))
        return self.out((scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2))

    def _places(self, place: Tensor) -> Tensor:
        """Places [places] -> their keys [heads, head_dim, places]."""
        table = sinusoids(place, self.place.in_features).to(self.place.weight.dtype)
        return self.place(table).unflatten(-1, (self.heads, -1)).permute(1, 2, 0)

    def _relative(self, toward: Tensor) -> Tensor:
        """Scores by distance for queries toward [batch, heads, time, head_dim]: [batch, heads, time, time]."""
        time = toward.shape[2]
        scores = toward @ self._places(torch.arange(time - 1, -time, -1, device=toward.device))
        # Column c is the distance time - 1 - c: one column more, read as rows one shorter, shifts each row by one.
        scores = F.pad(scores, (1, 0)).flatten(2)[..., time:]
        return scores.unflatten(2, (time, 2 * time - 1))[..., :time]

    def _wrapped(self, toward: Tensor, mask: Tensor | None, source: Tensor, source_mask: Tensor | None) -> Tensor:
        rows, columns = toward.shape[2], source.shape[1]
        lengths = _lengths(mask, toward, rows), _lengths(source_mask, source, columns)
        index, empty = wrapped_index(*lengths, rows, columns)
        scores = (toward @ self._places(torch.arange(columns, device=toward.device))).flatten(2)
        index = index.flatten(1)[:, None].expand(-1, self.heads, -1)
        return scores.gather(2, index).unflatten(2, (rows, columns)).masked_fill(empty[:, None], 0.0)


def wrapped_index(queries: Tensor, sources: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Which score by place stands where in voicesmith's shifted map, for items of these lengths [batch].

    Returns flat indices into [rows, columns], int64 [batch, rows, columns], and where there is 0 instead. The map is
    the one that each item has alone: shifted together with its padding, an item would depend on its batch.
    """
    n, m = queries[:, None, None], sources[:, None, None]
    row, column = (torch.arange(size, device=queries.device) for size in (rows, columns))
    at = row[:, None] * m + column + n  # one column of zeros in front, n entries of it left out
    index = torch.div(at, m + 1, rounding_mode="floor").clamp(max=rows - 1) * columns
    behind = at % (m + 1)
    return index + (behind - 1).clamp(min=0), behind == 0


def _lengths(mask: Tensor | None, x: Tensor, time: int) -> Tensor:
    return torch.full((len(x),), time, device=x.device) if mask is None else mask.sum(1)


class TimedAttention(nn.Module):
    """Multi-head attention of phonemes over the frames of a recording whose times are known (ours).

    Times go in as sinusoids, and the projections of queries and keys begin alike, so that a phoneme looks at frames
    around its own time from the first step on; the idea is Deep Voice 3's (arXiv 1710.07654, section 3.5).
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise UserError(f"a width of {dim} cannot be split among {heads} heads; choose a multiple")
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.key.load_state_dict(self.query.state_dict())

    def forward(
        self, x: Tensor, times: Tensor, source: Tensor, source_times: Tensor, source_mask: Tensor | None = None
    ) -> Tensor:
        """x [batch, text, dim] at times [batch, text], source [batch, frames, dim] at [frames] -> as x.

        Times are of one unit; source_mask [batch, frames]: the frames that may be looked at.
        """
        dim = x.shape[2]
        query, key = x + sinusoids(times, dim).to(x.dtype), source + sinusoids(source_times, dim).to(source.dtype)
        parts = (self.query(query), self.key(key), self.value(source))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        found = attend(q, k, v, None if source_mask is None else source_mask[:, None, None])
        return self.out(found.transpose(1, 2).flatten(2))
