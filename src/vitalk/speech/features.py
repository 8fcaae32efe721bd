"""What acoustic models train on: symbols, mel, pitch, energy and durations of clips, computed once and kept."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from vitalk.errors import UserError
from vitalk.files import write_whole

from .acoustic.variance import Spread
from .align.durations import DurationCache
from .audio import Audio
from .corpus import Clip, open_corpus, split
from .mel import MelSpec, compress, energy, magnitudes, mel_spec
from .pitch import continuous, f0

LEVEL = -23.0  # dB RMS relative to full scale, of every recording


@dataclass(frozen=True)
class FeatureSettings:
    """What features hang on: a mel preset, the language of the phonemes, and the range of the pitch in Hz."""

    mel: str = "vitalk"
    lang: str = "en-us"
    fmin: float = 60.0
    fmax: float = 600.0


def extract(clip: Clip, settings: FeatureSettings) -> dict[str, np.ndarray]:
    """The features of a clip: ids [text] of its phonemes, mel [mels, frames] float16, f0 [frames] Hz, energy [frames].

    The sound is that of ``sound``.
    Raises UserError for sounds that cannot be read or have no voice in them, and texts that cannot be spoken.
    """
    from .text.symbols import utterance_ids

    spec = mel_spec(settings.mel)
    audio = sound(clip, spec)
    wave = torch.from_numpy(audio.samples)[None]
    if wave.shape[1] <= spec.n_fft:
        raise UserError(f"{clip.id} lasts {audio.seconds:.2f} s, too short to learn from; remove it from the corpus")
    with torch.inference_mode():
        magnitude = magnitudes(wave, spec)
        mel = compress(magnitude, spec)[0]
    hertz = f0(audio, spec.hop, spec.center, settings.fmin, settings.fmax)[: mel.shape[1]]
    if not hertz.any():
        raise UserError(f"{clip.id} has no voice between {settings.fmin:g} and {settings.fmax:g} Hz; remove it")
    return {
        "ids": np.asarray(utterance_ids(_phonemes(clip, settings.lang)), np.int32),
        "mel": mel.half().numpy(),
        "f0": hertz.astype(np.float32),
        "energy": energy(magnitude)[0].numpy(),
    }


def sound(clip: Clip, spec: MelSpec) -> Audio:
    """A clip at the mel's rate, cut to its speech but for 50 ms, and brought to one level: what its features are of."""
    return clip.load().resampled(spec.rate).trimmed().levelled(LEVEL)


def framed(samples: np.ndarray, frames: int, spec: MelSpec) -> np.ndarray:
    """The samples [frames * hop] that go with mel frames, those of each frame in its middle, as many before as behind.

    Frames that the spec centres on multiples of the hop begin half a hop before them, so half a hop of zeros comes
    first; zeros also fill up the last frame. Samples behind the last frame are left out.
    """
    lead = spec.hop // 2 if spec.center else 0
    return np.pad(samples, (lead, spec.hop))[: frames * spec.hop]


def _phonemes(clip: Clip, lang: str) -> str:
    if clip.phonemes is not None:
        return clip.phonemes
    from .text.front import Front

    return " ".join(utterance.phonemes for utterance in Front(lang).utterances(clip.text))


class FeatureCache:
    """Features on disk, one file a clip, whole or absent; damaged ones are made again.

    folder: of the cache; None is the user's. A file's name hangs on the settings and on the clip's text and sound
    file, so that a changed corpus never meets old features.
    """

    def __init__(self, settings: FeatureSettings, folder: str | Path | None = None):
        if folder is None:
            from platformdirs import user_cache_path

            folder = user_cache_path("vitalk") / "features"
        self.settings, self.folder = settings, Path(folder)

    def name(self, clip: Clip) -> str:
        """The clip's own name in caches: of its features, and of its durations."""
        stamp = [clip.path.stat().st_size, clip.path.stat().st_mtime_ns] if clip.path is not None else []
        told = json.dumps([asdict(self.settings), clip.id, clip.text, clip.phonemes, str(clip.path), stamp])
        return hashlib.sha256(told.encode()).hexdigest()[:24]

    def get(self, clip: Clip) -> dict[str, np.ndarray] | None:
        """The features of a clip; None where they are absent or damaged."""
        from zipfile import BadZipFile

        try:
            with np.load(self._path(clip), allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def fetch(self, clip: Clip) -> dict[str, np.ndarray]:
        """The features of a clip, made now where they are not there."""
        if (found := self.get(clip)) is None:
            found = extract(clip, self.settings)
            buffer = io.BytesIO()
            np.savez(buffer, **found)
            write_whole(self._path(clip), buffer.getvalue())
        return found

    def frames(self, clips: list[Clip], workers: int = 0) -> np.ndarray:
        """Make what is missing, with a progress bar, and count the mel frames of each clip, int64 [clips]."""
        from rich.progress import track

        loader = DataLoader(_Lengths(self, clips), batch_size=None, num_workers=workers)
        counts = track(loader, "speech features", total=len(clips), transient=True)
        return np.fromiter(counts, np.int64, len(clips))

    def _path(self, clip: Clip) -> Path:
        name = self.name(clip)
        return self.folder / name[:2] / f"{name}.npz"


class _Lengths(Dataset):
    def __init__(self, cache: FeatureCache, clips: list[Clip]):
        self.cache, self.clips = cache, clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> int:
        return self.cache.fetch(self.clips[index])["mel"].shape[1]


class Utterances(Dataset):
    """Features of clips as tensors, with durations and the number of the speaker where they are known.

    wave: the samples [frames * hop] as well, decoded as they are asked for (see ``framed``).
    """

    def __init__(
        self, clips: list[Clip], cache: FeatureCache, speakers: list[str], durations: DurationCache | None,
        wave: bool = False,
    ):  # fmt: skip
        self.clips, self.cache, self.speakers, self.durations, self.wave = clips, cache, speakers, durations, wave

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = self.clips[index]
        row: dict[str, Any] = {name: torch.from_numpy(value) for name, value in self.cache.fetch(clip).items()}
        row = {**row, "ids": row["ids"].long(), "mel": row["mel"].float()}
        row["speaker"] = torch.tensor(self.speakers.index(clip.speaker))
        row["pitch"] = torch.from_numpy(np.exp(continuous(row["f0"].numpy()))).float()
        row["utterance"] = self.cache.name(clip)
        if self.durations is not None:
            row["durations"] = torch.from_numpy(self.durations[self.cache.name(clip)]).long()
        if self.wave:
            spec = mel_spec(self.cache.settings.mel)
            row["wave"] = torch.from_numpy(framed(sound(clip, spec).samples, row["mel"].shape[1], spec))
        return row


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Padded batch: ids, durations [batch, text]; mel [batch, mels, frames]; f0, pitch, energy [batch, frames].

    Where rows have it, wave [batch, frames * hop].

    f0 is 0 where there is no voice, pitch is the same in Hz with the gaps filled. Beside them text_lengths,
    mel_lengths, speaker [batch], and utterances, the names that durations are kept by. Padding is 0 everywhere.
    """
    batch = {
        name: pad_sequence([row[name] for row in rows], batch_first=True)
        for name in ("ids", "f0", "pitch", "energy", "durations", "wave")
        if name in rows[0]
    }
    batch["mel"] = pad_sequence([row["mel"].T for row in rows], batch_first=True).transpose(1, 2)
    batch["text_lengths"] = torch.tensor([len(row["ids"]) for row in rows])
    batch["mel_lengths"] = torch.tensor([row["mel"].shape[1] for row in rows])
    batch["speaker"] = torch.stack([row["speaker"] for row in rows])
    batch["utterances"] = [row["utterance"] for row in rows]
    return batch


class Speech(LightningDataModule):
    """A speech corpus for acoustic models and aligners: batches as ``collate`` makes them.

    path, speakers: see ``open_corpus``; None is the data root's kokoro_en. lang, mel, fmin, fmax: see
    ``FeatureSettings``. batch_frames: mel frames a batch with its padding, for each process. held_out, split_by: see
    ``split``. durations: folder of a ``DurationCache`` by ``FeatureCache.name``. cache: folder of the features.
    limit: only the first so many clips. longest: clips with more mel frames are left out. wave: batches bring the
    waveforms along, which costs decoding them every time.
    Batches are of similar lengths; which, and in what order, depends on ``seed`` and the epoch alone, and a run
    resumed within an epoch goes on with what it had not seen.
    """

    PROVIDES = ("n_speakers", "n_symbols")

    def __init__(
        self,
        path: str | list[str] | None = None,
        speakers: list[str] | None = None,
        lang: str = "en-us",
        mel: str = "vitalk",
        fmin: float = 60.0,
        fmax: float = 600.0,
        batch_frames: int = 8_000,
        workers: int = 1,
        held_out: float = 0.02,
        split_by: Literal["clip", "speaker"] = "clip",
        aligner: str | None = None,
        cache: str | None = None,
        limit: int | None = None,
        longest: int = 1_600,
        seed: int = 0,
        wave: bool = False,
    ):
        super().__init__()
        self.save_hyperparameters()
        from vitalk.files import data_root

        from .text.symbols import SIZE

        clips = open_corpus(path or data_root() / "speech" / "kokoro_en", speakers)[:limit]
        self.speakers = sorted({clip.speaker for clip in clips})
        self.n_speakers, self.n_symbols = len(self.speakers), SIZE
        self.cache = FeatureCache(FeatureSettings(mel, lang, fmin, fmax), cache)
        self.durations: DurationCache | None = None
        self.train, self.test = split(clips, held_out, split_by)

    def setup(self, stage: str | None = None) -> None:
        """Make the features that are missing and sort the clips by length."""
        o = self.hparams
        self.frames = {}
        for part in ("train", "test"):
            clips = getattr(self, part)
            frames = self.cache.frames(clips, o.workers)
            kept = np.flatnonzero(frames <= o.longest)
            if not len(kept):
                raise UserError(f"no clip of the {part} part has {o.longest} mel frames or fewer; raise longest")
            setattr(self, part, [clips[i] for i in kept])
            self.frames[part] = frames[kept]
        if o.aligner is not None:
            from .align.training import AlignerTraining

            self.use(AlignerTraining.load(o.aligner))

    def use(self, aligner: nn.Module) -> None:
        """Take the durations of a trained aligner; they are found once and kept beside the features."""
        from .align.durations import extract as align

        weights = b"".join(value.cpu().numpy().tobytes() for value in aligner.state_dict().values())
        durations = DurationCache(self.cache.folder / f"durations-{hashlib.sha256(weights).hexdigest()[:16]}")
        for part in ("train", "test"):
            if durations.missing(self.cache.name(clip) for clip in getattr(self, part)):
                align(aligner, self.whole_dataloader(part), durations)
        self.durations = durations

    def spreads(self, clips: int = 300) -> tuple[Spread, Spread]:
        """How log F0 (Hz) and energy are spread over the training part, measured on so many clips of it."""
        chosen = np.random.default_rng(0).permutation(len(self.train))[:clips]
        found = [self.cache.fetch(self.train[i]) for i in chosen]
        hertz, level = (torch.from_numpy(np.concatenate([row[name] for row in found])) for name in ("f0", "energy"))
        return Spread.of(hertz, log=True), Spread.of(level)

    def symbols(self, least: int = 10) -> str:
        """The symbols that the training part shows so often at least: what a model of it can be expected to speak."""
        from .text.symbols import to_phonemes

        shown = Counter(c for clip in self.train for c in to_phonemes(self.cache.fetch(clip)["ids"].tolist()))
        return "".join(sorted(c for c, count in shown.items() if count >= least))

    def train_dataloader(self) -> DataLoader:  # noqa: D102
        return self._loader(
            "train", LengthBatches(self.frames["train"], self.hparams.batch_frames, self.hparams.seed, self.trainer)
        )

    def val_dataloader(self) -> DataLoader:  # noqa: D102
        return self._loader("test", LengthBatches(self.frames["test"], self.hparams.batch_frames))

    def whole_dataloader(self, part: Literal["train", "test"]) -> DataLoader:
        """All clips of a part, each once: what durations are extracted from."""
        return self._loader(part, LengthBatches(self.frames[part], self.hparams.batch_frames))

    def _loader(self, part: Literal["train", "test"], batches: "LengthBatches") -> DataLoader:
        rows = Utterances(getattr(self, part), self.cache, self.speakers, self.durations, self.hparams.wave)
        workers = self.hparams.workers
        return DataLoader(
            rows, batch_sampler=batches, collate_fn=collate, num_workers=workers,
            persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip


class LengthBatches:
    """Batches of indices of similar lengths, at most ``most`` frames each with padding, one item at least.

    frames: [items]. With a trainer they are drawn anew each epoch and shared out over its processes.
    """

    def __init__(self, frames: np.ndarray, most: int, seed: int = 0, trainer: Any = None):
        self.frames, self.most, self.seed, self.trainer = frames, most, seed, trainer

    def __len__(self) -> int:
        return len(self._mine())

    def __iter__(self) -> Iterator[list[int]]:
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready if self.trainer is not None else 0
        return iter(self._mine()[done:])

    def _mine(self) -> list[list[int]]:
        if self.trainer is None:
            return self._batches(np.argsort(self.frames, kind="stable"))
        rng = np.random.default_rng((self.seed, self.trainer.current_epoch))
        batches = self._batches(np.argsort(self.frames * rng.uniform(0.9, 1.1, len(self.frames))))
        order = rng.permutation(len(batches))[: len(batches) // self.trainer.world_size * self.trainer.world_size]
        return [batches[i] for i in order[self.trainer.global_rank :: self.trainer.world_size]]

    def _batches(self, order: np.ndarray) -> list[list[int]]:
        batches: list[list[int]] = []
        longest = 0
        for index in order.tolist():
            longest = max(longest, int(self.frames[index]))
            if not batches or (len(batches[-1]) + 1) * longest > self.most:
                batches.append([])
                longest = int(self.frames[index])
            batches[-1].append(index)
        return batches
