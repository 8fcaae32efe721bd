"""Waves that vocoders train on: random segments of recordings, decoded once and kept."""

import hashlib
import json
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitalk.errors import UserError
from vitalk.files import data_root, write_whole

from ..audio import Audio
from ..corpus import SUFFIXES, Clip, split
from ..mel import mel_spec

EMPTY, FAINTEST = 0.8, -75.0  # part of half the rate, and dB below the loudest bin, where recordings hold something
GOOD = 0.95  # share of recordings that must be readable for the others to be passed over


def recordings(path: str | Path | list[str]) -> list[Clip]:
    """All sound files below a folder, or several; of each the id is its name without suffix, and there is no text.

    Raises UserError for folders that do not exist or hold no sound files.
    """
    if isinstance(path, list):
        pairs = ((Path(one).name, clip) for one in path for clip in recordings(one))
        return [Clip(f"{name}/{c.id}", c.text, c.speaker, c.load, path=c.path) for name, c in pairs]
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name one with sound files")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise UserError(f"{folder} holds no sound files; they end in {', '.join(SUFFIXES)}")
    return [Clip(p.stem, "", folder.name, partial(Audio.load, p), path=p) for p in files]


class WaveCache:
    """Recordings as 16-bit samples of one rate, without silence at the ends and at one level; a file each.

    A file is whole or absent. Its name hangs on the rate and on the sound file's path, size and time, so that changed
    recordings are decoded anew. rate: Hz. folder: None is the user's cache.
    """

    def __init__(self, rate: int, folder: str | Path | None = None):
        if folder is None:
            from platformdirs import user_cache_path

            folder = user_cache_path("vitalk") / "waves"
        self.rate, self.folder = rate, Path(folder)

    def path(self, clip: Clip) -> Path:
        """Where the recording is kept."""
        stamp = clip.path.stat()
        told = json.dumps([self.rate, str(clip.path.resolve()), stamp.st_size, stamp.st_mtime_ns])
        name = hashlib.sha256(told.encode()).hexdigest()[:24]
        return self.folder / name[:2] / f"{name}.s16"

    def fetch(self, clip: Clip) -> str | None:
        """Decode the recording where that is not done yet; None, or the sentence that says why it cannot be.

        Raises UserError where it cannot be kept.
        """
        try:
            kept = self.path(clip)
            if kept.is_file():
                return None
            audio = clip.load().resampled(self.rate).trimmed().levelled()
        except UserError as error:
            return str(error)
        except OSError as error:
            return f"{clip.path} cannot be read ({error.strerror or error}); remove or replace it"
        write_whole(kept, np.round(np.clip(audio.samples, -1, 1) * 32767).astype("<i2").tobytes())
        return None

    def fill(self, clips: list[Clip], threads: int = 1) -> list[str]:
        """Decode what is missing, with a progress bar; the sentences for recordings that cannot be."""
        from rich.progress import track

        with ThreadPoolExecutor(max(threads, 1)) as pool:
            found = track(pool.map(self.fetch, clips), "recordings", total=len(clips), transient=True)
            return [sentence for sentence in found if sentence is not None]


class Waves(Dataset):
    """Cached recordings, end to end; ``self[(number, start)]`` is a segment [segment] int16, with zeros at a short end.

    files: of a ``WaveCache``. segment: samples.
    """

    def __init__(self, files: list[Path], segment: int):
        self.files, self.segment = files, segment
        self.lengths = np.array([file.stat().st_size // 2 for file in files])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        number, start = place
        samples = np.fromfile(self.files[number], "<i2", self.segment, offset=2 * start)
        return torch.from_numpy(np.pad(samples, (0, self.segment - len(samples))))


def bandwidth(files: list[Path], rate: int, most: int = 16) -> float:
    """The frequency in Hz above which waves of a ``WaveCache`` hold nothing but rounding, whatever their rate.

    files: of which ``most`` are looked at, two seconds from the middle of each.
    """
    power = np.zeros(1025)
    for file in files[:: -(-len(files) // most)]:
        samples = np.fromfile(file, "<i2")
        start = max(len(samples) - 2 * rate, 0) // 2
        samples = np.pad(samples, (0, max(2048 - len(samples), 0)))
        frames = np.lib.stride_tricks.sliding_window_view(samples, 2048)
        frames = frames[start : start + 2 * rate : 1024]
        power += np.square(np.abs(np.fft.rfft(frames / 32767 * np.hanning(2048)))).sum(0)
    heard = np.flatnonzero(power > power.max() * 10 ** (FAINTEST / 10))
    return float(heard[-1]) / 1024 * rate / 2 if len(heard) else 0.0


class RandomPlaces:
    """Places of segments for an epoch: every stretch of sound is as likely, so that each is heard once on average.

    They depend on ``seed`` and the epoch alone, are shared out over the processes of the trainer, and go on where a
    resumed run stood.
    """

    def __init__(self, waves: Waves, batch_size: int, seed: int, trainer: Any):
        self.waves, self.batch_size, self.seed, self.trainer = waves, batch_size, seed, trainer
        self.starts = np.maximum(waves.lengths - waves.segment, 0) + 1
        batches = int(waves.lengths.sum()) // (waves.segment * batch_size * trainer.world_size)
        self.count = max(batches, 1) * batch_size

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        trainer = self.trainer
        draw = np.random.default_rng((self.seed, trainer.current_epoch))
        # In proportion to lengths, not to possible starts, or recordings shorter than a segment were never heard.
        share = self.waves.lengths / self.waves.lengths.sum()
        numbers = draw.choice(len(self.starts), self.count * trainer.world_size, p=share)
        starts = (draw.random(len(numbers)) * self.starts[numbers]).astype(int)
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready * self.batch_size  # > 0 only when resumed
        mine = slice(trainer.global_rank, None, trainer.world_size)
        return iter(list(zip(numbers[mine].tolist(), starts[mine].tolist(), strict=True))[done:])


class Segments(LightningDataModule):
    """Random segments of the recordings below a folder: batches of waves [batch, segment] float32.

    path: a folder, searched with its subfolders, or several; None is the data root's kokoro_en. mel: preset that the
    model gets. rate: of the waves in Hz, None for the preset's; generators that go beyond it have their own. segment:
    samples. batch_size: per process. workers: processes that read, and threads that decode. hold_out: share of the
    recordings that validate, by the middle of each; chosen by their names as in ``corpus.split``. limit: only the
    first so many recordings. gain: each training segment is made louder or quieter by up to so many dB. cache: folder
    of the decoded recordings, None for the user's cache.

    Recordings are trimmed and brought to -23 dB once, and decoding that was broken off goes on where it stood. Those
    that cannot be read are passed over with a warning where 95 % are good. Raises UserError, naming the first, where
    fewer are, and for folders without sound.
    """

    PROVIDES = ("mel", "rate")

    def __init__(
        self,
        path: str | list[str] | None = None,
        mel: str = "vitalk",
        segment: int = 12_000,
        batch_size: int = 8,
        workers: int = 1,
        hold_out: float = 0.02,
        limit: int | None = None,
        gain: float = 0.0,
        cache: str | None = None,
        seed: int = 0,
        rate: int | None = None,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.mel = mel
        self.clips = recordings(path or str(data_root() / "speech" / "kokoro_en"))[:limit]
        self.rate = rate or mel_spec(mel).rate
        self.cache = WaveCache(self.rate, cache)
        self.parts = dict(zip(("train", "test"), split(self.clips, hold_out), strict=True))

    def prepare_data(self) -> None:
        """Decode what is not decoded yet."""
        bad = self.cache.fill(self.clips, self.hparams.workers)
        if len(bad) > (1 - GOOD) * len(self.clips):
            raise UserError(f"{len(bad)} of {len(self.clips)} recordings are bad, the first: {bad[0]}")
        if bad:
            warnings.warn(f"{len(bad)} recordings are passed over, the first: {bad[0]}", stacklevel=2)

    def setup(self, stage: str | None = None) -> None:
        """Look up the decoded recordings."""
        self.waves = {}
        for part, clips in self.parts.items():
            kept = [clip for clip in clips if clip.path.is_file() and self.cache.path(clip).is_file()]
            if not kept:
                raise UserError(f"the {part} part has no recording that can be read; give more recordings")
            self.waves[part] = self.dataset(kept)
        top = bandwidth(self.waves["train"].files, self.rate)
        if self.hparams.rate is not None and top < EMPTY * self.rate / 2:
            warnings.warn(
                f"the recordings hold nothing above {top:,.0f} Hz, so that waves of {self.rate:,} Hz are not to be "
                "learnt from them; give recordings of that rate", stacklevel=2,
            )  # fmt: skip

    def dataset(self, clips: list[Clip]) -> Waves:
        """The segments of decoded recordings."""
        return Waves([self.cache.path(clip) for clip in clips], self.hparams.segment)

    def train_dataloader(self) -> DataLoader:  # noqa: D102
        waves, o = self.waves["train"], self.hparams
        return self._loader(waves, RandomPlaces(waves, o.batch_size, o.seed, self.trainer))

    def val_dataloader(self) -> DataLoader:  # noqa: D102
        waves = self.waves["test"]
        middles = np.maximum(waves.lengths - waves.segment, 0) // 2
        return self._loader(waves, list(enumerate(middles.tolist())))

    def on_after_batch_transfer(self, batch: Tensor, _: int) -> Tensor:
        """16-bit samples -> floats, full scale at 1, with a random gain while training."""
        wave = batch.float() / 32767
        if self.hparams.gain and self.trainer.training:
            decibels = self.hparams.gain * (2 * torch.rand(len(wave), 1, device=wave.device) - 1)
            wave = wave * 10 ** (decibels / 20)
        return wave

    def _loader(self, waves: Waves, places: Any) -> DataLoader:
        o = self.hparams
        return DataLoader(
            waves, o.batch_size, sampler=places, num_workers=o.workers,
            persistent_workers=o.workers > 0, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip
