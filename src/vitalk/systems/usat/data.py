"""Utterances with another recording of the same speaker beside each: what training listens to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from vitalk.errors import UserError
from vitalk.speech.corpus import Clip
from vitalk.speech.features import LengthBatches, Speech, Utterances, collate, framed, sound
from vitalk.speech.mel import mel_spec
from vitalk.speech.vocoder.data import WaveCache

Key = int | tuple[int, int, float]


class PairedSpeech(Speech):
    """A speech corpus whose batches bring waves along and, for each utterance, a reference: another one of its speaker.

    The reference changes from epoch to epoch, as ``seed`` says; those of the held-out part may be of either part, and
    always are the same. Durations are not needed, but help short trainings (see ``UsatTraining``). Waves are decoded
    once and kept beside the features.

    path, and options: see ``Speech``. reference_frames: a reference is cut to so many frames, at a random place.
    references: False leaves them out, as adaptation needs none.
    Raises UserError, naming the speaker, where somebody has one utterance only.
    """

    def __init__(
        self,
        path: str | list[str] | None = None,
        reference_frames: int = 400,
        references: bool = True,
        **options: Any,
    ):
        super().__init__(path, **options)
        folder = None if self.hparams.cache is None else Path(self.hparams.cache) / "waves"
        self.waves = WaveCache(mel_spec(self.hparams.mel).rate, folder)

    def wave(self, clip: Clip) -> np.ndarray:
        """The samples of a clip as its features are of, float32 [time]."""
        if clip.path is None:
            return sound(clip, mel_spec(self.hparams.mel)).samples
        if (failure := self.waves.fetch(clip)) is not None:
            raise UserError(failure)
        return np.fromfile(self.waves.path(clip), "<i2").astype(np.float32) / 32767

    def framed_wave(self, clip: Clip) -> Tensor:
        """The samples [frames * hop] of a clip, those of each frame in its middle; see ``features.framed``."""
        spec, samples = mel_spec(self.hparams.mel), self.wave(clip)
        return torch.from_numpy(framed(samples, spec.frames(len(samples)), spec).astype(np.float32))

    def _loader(self, part: Literal["train", "test"], batches: LengthBatches) -> DataLoader:
        rows = Pairs(self, part)
        workers = self.hparams.workers
        return DataLoader(
            rows, batch_sampler=PairBatches(rows, batches) if self.hparams.references else batches,
            collate_fn=collate_pairs, num_workers=workers, persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )  # fmt: skip


class Pairs(Utterances):
    """Features and wave of clips; ``self[(index, other, place)]`` brings a slice of a clip of ``pool`` along.

    pool: the clips of the part first, then, of the held-out part, those of the training part.
    """

    def __init__(self, data: PairedSpeech, part: Literal["train", "test"]):
        super().__init__(getattr(data, part), data.cache, data.speakers, data.durations)
        self.data, self.pool = data, self.clips if part == "train" else [*self.clips, *data.train]
        self.own: dict[str, np.ndarray] = {}
        names = np.array([clip.speaker for clip in self.pool])
        for name in sorted({clip.speaker for clip in self.clips}) if data.hparams.references else ():
            self.own[name] = np.flatnonzero(names == name)
            if len(self.own[name]) < 2:
                raise UserError(
                    f"the speaker {name} has one utterance in the {part} part, and needs another to listen to; record "
                    "more, or leave the speaker out with data.init_args.speakers"
                )

    def partner(self, index: int, share: float) -> int:
        """Another clip of the speaker of a clip, by its place in ``pool``; share: which, from 0 up to 1."""
        own = self.own[self.clips[index].speaker]
        chosen = int(share * (len(own) - 1))
        return int(own[chosen + (chosen >= np.searchsorted(own, index))])

    def __getitem__(self, key: Key) -> dict[str, Any]:
        index, other, place = key if isinstance(key, tuple) else (key, None, 0.0)
        row = super().__getitem__(index)
        row["wave"] = self.data.framed_wave(self.clips[index])
        if other is not None:
            hop, most = mel_spec(self.data.hparams.mel).hop, self.data.hparams.reference_frames
            heard = self.data.framed_wave(self.pool[other])
            start = int(place * (max(len(heard) // hop - most, 0) + 1)) * hop
            row["reference"] = heard[start : start + most * hop]
        return row


class PairBatches:
    """The batches of ``LengthBatches`` with a reference for each item, which hangs on its seed and the epoch alone."""

    def __init__(self, rows: Pairs, batches: LengthBatches):
        self.rows, self.batches = rows, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        trainer = self.batches.trainer
        epoch = 0 if trainer is None else trainer.current_epoch
        drawn = np.random.default_rng((self.batches.seed, epoch, 1)).random((len(self.rows), 2)).tolist()
        for batch in self.batches:
            yield [(i, self.rows.partner(i, drawn[i][0]), drawn[i][1]) for i in batch]


def collate_pairs(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """``features.collate``, and where there are references, reference [batch, samples] and its frames [batch]."""
    batch = collate(rows)
    if "reference" in rows[0]:
        batch["reference"] = pad_sequence([row["reference"] for row in rows], batch_first=True)
        hop = rows[0]["wave"].shape[0] // rows[0]["mel"].shape[1]
        batch["reference_lengths"] = torch.tensor([len(row["reference"]) // hop for row in rows])
    return batch
