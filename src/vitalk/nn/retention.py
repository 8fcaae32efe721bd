"""Retention: attention without softmax whose weights decay with distance, and the recurrences that equal it.

Along a sequence (RetNet, arXiv 2307.08621, section 2; ViR, arXiv 2310.19731, section 3) with a decay gamma a head:

    parallel     y = (q k^T * M) v, where M[n, m] = gamma^(n - m) for n >= m, else 0
    recurrent    S_n = gamma S_(n-1) + k_n^T v_n,  y_n = q_n S_n
    chunkwise    parallel inside a chunk, recurrent from chunk to chunk

On a grid (the second version of arXiv 2310.19731) M[n, m] = gamma^(rows + columns between n and m) where m lies in the
upper left quadrant of n, else 0. Both are linear in the keys and values, so that all forms agree but for rounding.

Queries, keys and values are [batch, heads, tokens, dim], the queries scaled already; gamma is [heads], in [0, 1] and
float32 or wider, since low precision cannot tell 0.998 from 1. States are kept in float32 at least, whatever the type
of the tokens. Nothing has parameters.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitalk.nn.grid import grid_offsets
from vitalk.nn.precision import full_precision

Schedule = Literal["vir", "retnet"] | Sequence[float]
ClassToken = Literal["first", "last"] | None


def decays(heads: int, schedule: Schedule = "vir") -> tuple[float, ...]:
    """The decay of each head.

    "vir": 1 - exp(linspace(ln 1/32, ln 1/512)), the ViR release's; "retnet": 1 - 2^(-5 - i) (arXiv 2307.08621, section
    3.1); or the values themselves. Raises ValueError for an unknown name, a wrong number of values, or one outside
    [0, 1].
    """
    if schedule == "vir":
        shares = [i / max(heads - 1, 1) for i in range(heads)]
        return tuple(1 - math.exp((1 - t) * math.log(1 / 32) + t * math.log(1 / 512)) for t in shares)
    if schedule == "retnet":
        return tuple(1 - 2.0 ** (-5 - i) for i in range(heads))
    if isinstance(schedule, str):
        raise ValueError(f"there is no decay schedule {schedule!r}; choose vir, retnet, or a list of decays")
    if len(schedule) != heads or not all(0 <= g <= 1 for g in schedule):
        raise ValueError(f"{heads} heads need as many decays between 0 and 1, got {list(schedule)}")
    return tuple(float(g) for g in schedule)


def powers(gamma: Tensor, distance: Tensor) -> Tensor:
    """gamma [heads] to the power of distance [...], and 0 where that is negative: [heads, ...].

    Quotients of powers would overflow on long sequences, distances do not; 0^0 is 1.
    """
    grown = gamma.view(-1, *[1] * distance.dim()) ** distance.clamp(min=0)
    return torch.where(distance >= 0, grown, 0.0)


def decay_mask(length: int, gamma: Tensor) -> Tensor:
    """The mask M along a sequence, [heads, length, length], query first."""
    index = torch.arange(length, device=gamma.device)
    return powers(gamma, index[:, None] - index)


def grid_decay_mask(height: int, width: int, gamma: Tensor, class_token: ClassToken = None) -> Tensor:
    """The mask M on a grid in raster order, [heads, tokens, tokens], query first.

    class_token: "last" stands for an additional token at row ``height`` and the last column, below all others, which
    it sees (the ViR release); "first" for one at row -1 and column 0, above all others, by which it is seen (ours).
    """
    rows, columns = grid_offsets(height, width, gamma.device)
    distance = torch.where((rows >= 0) & (columns >= 0), rows + columns, -1)
    if class_token == "last":
        seen = F.pad(distance[-1:] + 1, (0, 1))
        distance = torch.cat([F.pad(distance, (0, 1), value=-1), seen])
    elif class_token == "first":
        by = F.pad(distance[:, :1] + 1, (0, 0, 1, 0))
        distance = torch.cat([by, F.pad(distance, (0, 0, 1, 0), value=-1)], dim=1)
    return powers(gamma, distance)


def retain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The parallel form: time and memory grow with the square of the tokens. -> [batch, heads, tokens, dim]."""
    return (q @ k.transpose(-2, -1) * mask.to(q.dtype)) @ v


def retain_chunks(
    q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, chunk_size: int, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The chunkwise form: (y like v, the state after the last token [batch, heads, dim, dim]).

    All chunks are computed at once, except for the state, which goes from one to the next; memory grows with tokens
    times ``chunk_size``. A chunk of all tokens is the parallel form, and one of one token the recurrent one; the last
    may be shorter. state: what came before, None for nothing.
    """
    length = q.shape[2]
    size = min(chunk_size, length)
    whole = length // size * size
    chunked = [x[:, :, :whole].unflatten(2, (-1, size)) for x in (q, k, v)]
    inner = retain(*chunked, decay_mask(size, gamma)[:, None])
    with full_precision(q):
        q_c, k_c, v_c = (_wide(x) for x in chunked)
        index = torch.arange(size, device=gamma.device)
        sums = (k_c * powers(gamma, size - 1 - index)[:, None, :, None]).transpose(-2, -1) @ v_c
        before, passed = [], powers(gamma, torch.tensor(size, device=gamma.device))[:, None, None]
        state = torch.zeros_like(sums[:, :, 0]) if state is None else state
        for total in sums.unbind(2):
            before.append(state)
            state = passed * state + total
        cross = q_c @ torch.stack(before, dim=2) * powers(gamma, index + 1)[:, None, :, None]
    y = (inner + cross.to(inner.dtype)).flatten(2, 3)
    if whole == length:
        return y, state
    rest, state = retain_chunks(*(x[:, :, whole:] for x in (q, k, v)), gamma, length - whole, state)
    return torch.cat([y, rest], dim=2), state


class LineState:
    """What a retention layer remembers of a sequence: one matrix a head, however long the sequence becomes.

    gamma: [heads]. memory: [batch, heads, dim, dim], None before the first token.
    """

    def __init__(self, gamma: Tensor) -> None:
        self.gamma = gamma
        self.memory: Tensor | None = None

    def step(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The next token, [batch, heads, 1, dim] each -> the same shape: the recurrent form, one step of it."""
        with full_precision(q):
            fresh = _wide(k).transpose(-2, -1) @ _wide(v)
            self.memory = fresh if self.memory is None else self.gamma[:, None, None] * self.memory + fresh
            return (_wide(q) @ self.memory).to(v.dtype)

    def scan(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The next tokens at once, [batch, heads, tokens, dim] each -> the same shape; as many steps, but faster."""
        y, self.memory = retain_chunks(q, k, v, self.gamma, q.shape[2], self.memory)
        return y

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The next tokens, by ``step`` where there is one and by ``scan`` else."""
        return self.step(q, k, v) if q.shape[2] == 1 else self.scan(q, k, v)


def retain_tokens(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """The recurrent form, token by token: the definition to check others against, slow by nature."""
    state = LineState(gamma)
    return torch.cat([state.step(*token) for token in zip(*(x.split(1, 2) for x in (q, k, v)), strict=True)], dim=2)


class GridState:
    """What a retention layer remembers of a grid: the states of the row before, however many rows there are.

    With the row's own part T_c = gamma T_(c-1) + k_c^T v_c, the recurrence S_(r,c) = gamma S_(r-1,c) + gamma S_(r,c-1)
    - gamma^2 S_(r-1,c-1) + k^T v becomes S_(r,c) = gamma S_(r-1,c) + T_c, and several rows advance at once.

    gamma: [heads]. width: columns of the grid. class_token: where it is, as in ``grid_decay_mask``.
    memory: [batch, heads, width, dim, dim], None before the first token.
    """

    def __init__(self, gamma: Tensor, width: int, class_token: ClassToken = None) -> None:
        self.gamma, self.width, self.class_token = gamma, width, class_token
        self.memory: Tensor | None = None

    def scan(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The next whole rows in raster order, [batch, heads, tokens, dim] each -> the same shape.

        The class token comes before the first row or after the last one, in their chunk or in one of its own.
        Raises ValueError for tokens that are no whole rows.
        """
        parts, given = [], (q, k, v)
        if self.class_token == "first" and self.memory is None:
            parts.append(self._first(*(x[:, :, :1] for x in given)))
            given = tuple(x[:, :, 1:] for x in given)
        rest = given[0].shape[2] % self.width
        if rest and not (rest == 1 and self.class_token == "last"):
            raise ValueError(f"a grid goes on by whole rows of {self.width} tokens, got {given[0].shape[2]}")
        whole = given[0].shape[2] - rest
        if whole:
            parts.append(self._rows(*(x[:, :, :whole].unflatten(2, (-1, self.width)) for x in given)))
        if rest:
            parts.append(self._last(*(x[:, :, whole:] for x in given)))
        return torch.cat(parts, dim=2)

    __call__ = scan

    def _rows(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = q.shape[2]
        flat = [x.flatten(2, 3) for x in (q, k, v)]
        y = retain(*flat, grid_decay_mask(rows, self.width, self.gamma))
        row = torch.arange(rows, device=self.gamma.device)
        with full_precision(q):
            # To columns: what a column's tokens leave behind is one product, [batch, heads, width, rows, dim].
            q, k, v = (_wide(x).transpose(2, 3) for x in (q, k, v))
            sums = (k * powers(self.gamma, rows - 1 - row)[:, None, :, None]).transpose(-2, -1) @ v
            fresh = decayed_cumsum(sums, self.gamma)
            if self.memory is not None:
                cross = q @ self.memory * powers(self.gamma, row + 1)[:, None, :, None]
                y = y + cross.transpose(2, 3).flatten(2, 3).to(y.dtype)
                fresh = fresh + self.gamma[:, None, None, None] ** rows * self.memory
            self.memory = fresh
        return y

    def _first(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with full_precision(q):
            own = _wide(k).transpose(-2, -1) @ _wide(v)
            column = torch.arange(self.width, device=self.gamma.device)
            self.memory = own[:, :, None] * powers(self.gamma, column)[:, :, None, None]
            return (_wide(q) @ own).to(v.dtype)

    def _last(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with full_precision(q):
            seen = _wide(k).transpose(-2, -1) @ _wide(v)
            if self.memory is not None:
                seen = seen + self.gamma[:, None, None] * self.memory[:, :, -1]
            return (_wide(q) @ seen).to(v.dtype)


def retain_rows(
    q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, width: int, rows: int = 1, class_token: ClassToken = None
) -> Tensor:
    """Retention on a grid, ``rows`` rows at a time; 1 is its recurrence, all at once the parallel form.

    Time grows with the tokens times the states of a row (or times ``rows`` rows of tokens, where these are more).
    """
    patches = q.shape[2] - (class_token is not None)
    sizes = [min(rows * width, patches - start) for start in range(0, patches, rows * width)]
    if class_token is not None:
        sizes[0 if class_token == "first" else -1] += 1
    state = GridState(gamma, width, class_token)
    return torch.cat([state.scan(*part) for part in zip(*(x.split(sizes, 2) for x in (q, k, v)), strict=True)], dim=2)


def decayed_cumsum(x: Tensor, gamma: Tensor) -> Tensor:
    """y_c = gamma y_(c-1) + x_c along the third axis of x [batch, heads, columns, dim, dim].

    Doubling (each round adds sums twice as long) takes log2(columns) rounds and no loop over the columns.
    """
    shift = 1
    while shift < x.shape[2]:
        moved = F.pad(x[:, :, :-shift], (0, 0, 0, 0, shift, 0))
        x = x + gamma[:, None, None, None] ** shift * moved
        shift *= 2
    return x


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
