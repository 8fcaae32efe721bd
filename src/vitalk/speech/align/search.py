"""Monotonic alignment search: the best path that gives every frame one symbol and skips none.

The monotonic alignment search of Glow-TTS (arXiv 2005.11129). Values are summed as float32, on every backend in the
same order, so that the compiled search and the one in torch give the same durations.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vitalk.errors import UserError

Ties = Literal["stay", "diagonal"]
Backend = Literal["auto", "numba", "torch"]


def maximum_path(
    score: Tensor, text_lengths: Tensor, frame_lengths: Tensor, ties: Ties = "stay", backend: Backend = "auto"
) -> Tensor:
    """Durations in frames of the monotonic path with the highest sum of scores.

    score: [batch, text, frames], any floating type, log-likelihoods as a rule; no gradient passes.
    text_lengths, frame_lengths: int64 [batch]; what lies beyond them is never read.
    ties: where both moves are equally good, seen from the end: "stay" on the symbol (Glow-TTS) or take the
    "diagonal" to the symbol before (the search of RAD-TTS).
    backend: "numba" is compiled and takes the items of a batch in parallel threads; "torch" loops over frames and
    runs on any device; "auto" takes numba for tensors on the CPU where numba is there, else torch.

    Returns int64 [batch, text]: at least 1 for each symbol, in sum the frames of the item, 0 beyond its length.
    Scores that are no numbers give some valid path. Raises UserError where an item has more symbols than frames,
    none at all, or more of either than the scores, and where numba is asked for and not there.
    """
    check_lengths(text_lengths, frame_lengths, score.shape[1:])
    search = _compiled() if backend == "numba" or (backend == "auto" and score.device.type == "cpu") else None
    if backend == "numba" and search is None:
        raise UserError("the compiled alignment search needs numba; install it or choose the backend torch")
    by_frame = score.detach().transpose(1, 2).float()
    if search is None:
        return _search_torch(by_frame, text_lengths, frame_lengths, ties == "diagonal")
    return _search_numba(search, by_frame, text_lengths, frame_lengths, ties == "diagonal").to(score.device)


def path_of(durations: Tensor, frames: int) -> Tensor:
    """Durations int64 [batch, text] -> the path, bool [batch, text, frames]; what reaches beyond is cut off."""
    ends = durations.cumsum(1)[:, :, None]
    frame = torch.arange(frames, device=durations.device)
    return (frame >= ends - durations[:, :, None]) & (frame < ends)


def check_lengths(text_lengths: Tensor, frame_lengths: Tensor, most: tuple[int, int] | None = None) -> None:
    """Raise UserError naming the first item that no path fits: without symbols, or with fewer frames than symbols.

    most: the (text, frames) that the tensors have room for.
    """
    rows = zip(text_lengths.tolist(), frame_lengths.tolist(), strict=True)
    for item, (symbols, frames) in enumerate(rows):
        if symbols < 1:
            raise UserError(f"item {item} of the batch has no symbols; leave it out")
        if symbols > frames:
            raise UserError(
                f"item {item} of the batch has {symbols} symbols but only {frames} frames; leave it out, check its "
                "text, or take a shorter hop"
            )
        if most is not None and (symbols > most[0] or frames > most[1]):
            raise UserError(
                f"item {item} of the batch is said to have {symbols} symbols and {frames} frames, but its scores are "
                f"{most[0]} by {most[1]}; check the lengths"
            )


def _search_item(score: np.ndarray, diagonal: bool, durations: np.ndarray) -> None:
    """Fill durations [text] from the scores [frames, text] of one item; numba compiles this."""
    frames, text = score.shape
    moved = np.zeros((frames, text), np.bool_)
    best = np.full(text, -np.inf, np.float32)
    best[0] = score[0, 0]
    for t in range(1, frames):
        # Downwards, so that best[j - 1] is still the frame before; only symbols from which the end can be reached.
        for j in range(min(t, text - 1), max(text - frames + t, 0) - 1, -1):
            if j > 0 and (j == t or best[j - 1] > best[j] or (diagonal and best[j - 1] == best[j])):
                moved[t, j] = True
                best[j] = best[j - 1] + score[t, j]
            else:
                best[j] += score[t, j]
    j = text - 1
    for t in range(frames - 1, -1, -1):
        durations[j] += 1
        if moved[t, j]:
            j -= 1


@cache
def _compiled() -> Callable[..., None] | None:
    """The compiled ``_search_item``, None without numba."""
    try:
        from numba import njit
    except ImportError:
        return None
    try:
        return njit(nogil=True, cache=True)(_search_item)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return njit(nogil=True)(_search_item)


def _search_numba(
    search: Callable[..., None], by_frame: Tensor, text_lengths: Tensor, frame_lengths: Tensor, diagonal: bool
) -> Tensor:
    scores = by_frame.cpu().contiguous().numpy()
    durations = np.zeros((len(scores), scores.shape[2]), np.int64)
    sizes = list(zip(text_lengths.tolist(), frame_lengths.tolist(), strict=True))

    def run(item: int) -> None:
        text, frames = sizes[item]
        search(scores[item, :frames, :text], diagonal, durations[item, :text])

    # Threads of our own around a kernel without the GIL: numba's parallel loops may be used neither from two threads
    # at once nor after a fork, and data loaders do both.
    workers = min(len(sizes), torch.get_num_threads())
    if workers < 2:
        for item in range(len(sizes)):
            run(item)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(run, range(len(sizes))))
    return torch.from_numpy(durations)


def _search_torch(by_frame: Tensor, text_lengths: Tensor, frame_lengths: Tensor, diagonal: bool) -> Tensor:
    batch, frames, text = by_frame.shape
    place: dict[str, Any] = {"device": by_frame.device}
    text_lengths, frame_lengths = text_lengths.to(**place), frame_lengths.to(**place)
    moved = torch.zeros(frames, batch, text, dtype=torch.bool, **place)
    best = torch.full((batch, text), float("-inf"), **place)
    best[:, 0] = by_frame[:, 0, 0]
    for t in range(1, frames):
        before = best[:, :-1]
        moved[t, :, 1:] = before >= best[:, 1:] if diagonal else before > best[:, 1:]
        if t < text:
            moved[t, :, t] = True
        best = torch.cat([best[:, :1], torch.where(moved[t, :, 1:], before, best[:, 1:])], 1) + by_frame[:, t]
    durations = torch.zeros(batch, text, dtype=torch.int64, **place)
    symbol = (text_lengths - 1)[:, None]
    for t in range(frames - 1, -1, -1):
        inside = (t < frame_lengths)[:, None]
        durations.scatter_add_(1, symbol, inside.long())
        symbol = symbol - (moved[t].gather(1, symbol) & inside).long()
    return durations
