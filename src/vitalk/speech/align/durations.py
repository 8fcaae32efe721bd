"""Durations on disk, one small file an utterance, each whole or absent.

cache = DurationCache(folder)
extract(aligner, loader, cache)
cache["utterance"]  # int64 [text], frames of each symbol
"""

import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from vitalk.errors import UserError
from vitalk.files import write_whole

DAMAGE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError)


class DurationCache:
    """Durations in frames by utterance id, in ``folder``.

    Files are npz archives, whose checksums show damage; they hold the number of frames beside the durations, and an
    entry whose durations do not sum to it counts as damaged. A damaged entry is absent: ``extract`` makes it again.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def get(self, utterance: str, symbols: int | None = None, frames: int | None = None) -> np.ndarray | None:
        """Durations int64 [text], None where they are absent, damaged, or not for so many symbols or frames."""
        try:
            with np.load(self._path(utterance), allow_pickle=False) as entry:
                durations, total = entry["durations"], int(entry["frames"])
        except DAMAGE:
            return None
        if _fault(durations, total) or symbols not in (None, len(durations)) or frames not in (None, total):
            return None
        return durations.astype(np.int64)

    def put(self, utterance: str, durations: np.ndarray | Tensor, frames: int) -> None:
        """Keep durations [text] of an utterance of so many frames.

        Raises UserError where they are negative, no integers, or do not sum to the frames, and where the folder
        cannot be written to.
        """
        durations = np.asarray(durations.cpu() if isinstance(durations, Tensor) else durations)
        if fault := _fault(durations, frames):
            raise UserError(f"the durations of {utterance} {fault}; align it again with the mel that it is used with")
        buffer = io.BytesIO()
        np.savez(buffer, durations=durations.astype(np.int32), frames=np.int32(frames))
        write_whole(self._path(utterance), buffer.getvalue())

    def __getitem__(self, utterance: str) -> np.ndarray:
        found = self.get(utterance)
        if found is None:
            raise UserError(f"{self.folder} has no sound durations of {utterance}; align it (again)")
        return found

    def __contains__(self, utterance: str) -> bool:
        return self.get(utterance) is not None

    def __iter__(self) -> Iterator[str]:
        """Utterances that have a file, in order of names; damaged ones among them."""
        return (unquote(path.name.removesuffix(".npz")) for path in sorted(self.folder.glob("*.npz")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def missing(self, utterances: Iterable[str]) -> list[str]:
        """Those without a whole entry, in order."""
        return [utterance for utterance in utterances if utterance not in self]

    def _path(self, utterance: str) -> Path:
        # Quoted, since ids are often paths; a leading dot would hide the file.
        name = quote(utterance, safe=" ")
        return self.folder / f"{'%2E' + name[1:] if name.startswith('.') else name}.npz"


class Durations(Protocol):
    """What ``extract`` asks: the durations [batch, text] of a batch, as ``AlignerTraining`` gives them."""

    def durations(self, batch: dict[str, Any]) -> Tensor:
        """Durations in frames, int64 [batch, text]."""
        ...


def extract(aligner: Durations, loader: Iterable[dict[str, Any]], cache: DurationCache) -> int:
    """Put the durations of every utterance of a loader into the cache; returns how many were made.

    Batches are those of ``AlignerTraining`` with one entry more, ``utterances``: a list of ids. What the cache has
    whole, for as many symbols and frames, is left out, so that an extraction that was stopped goes on where it was.
    An ``nn.Module`` is asked in eval mode, on its own device.
    """
    module = aligner if isinstance(aligner, torch.nn.Module) else None
    training = module is not None and module.training
    if module is not None:
        module.eval()
    made = 0
    try:
        with Progress(transient=True) as progress:
            for batch in progress.track(
                loader, total=len(loader) if isinstance(loader, Sized) else None, description="Aligning"
            ):
                made += _extract_batch(aligner, batch, cache)
    finally:
        if module is not None:
            module.train(training)
    return made


def _extract_batch(aligner: Durations, batch: dict[str, Any], cache: DurationCache) -> int:
    names = batch["utterances"]
    sizes = list(zip(batch["text_lengths"].tolist(), batch["mel_lengths"].tolist(), strict=True))
    rows = [i for i, (name, size) in enumerate(zip(names, sizes, strict=True)) if cache.get(name, *size) is None]
    if not rows:
        return 0
    parameter = next(aligner.parameters(), None) if isinstance(aligner, torch.nn.Module) else None
    device = torch.device("cpu") if parameter is None else parameter.device
    chosen = {name: value[rows].to(device) for name, value in batch.items() if isinstance(value, Tensor)}
    for row, durations in zip(rows, aligner.durations(chosen).cpu().numpy(), strict=True):
        symbols, frames = sizes[row]
        cache.put(names[row], durations[:symbols], frames)
    return len(rows)


def _fault(durations: np.ndarray, frames: int) -> str | None:
    if durations.ndim != 1 or not np.issubdtype(durations.dtype, np.integer):
        return "are no row of whole numbers"
    if (durations < 0).any():
        return "are negative in places"
    if durations.sum() != frames:
        return f"sum to {durations.sum()} frames instead of {frames}"
    return None
