"""Segments with the mels that an acoustic model makes of them: what a vocoder is tuned on for that model.

Mels of acoustic models are smoother than those of recordings; a vocoder that has heard them copes (arXiv 2010.05646,
section 4.4). They are made with the recordings' own durations, so that they fit the waves frame by frame:

vitalk mels runs/fastspeech2-cpu/model.safetensors --aligner runs/aligner-cpu/model.safetensors -o runs/mels
vitalk train vocoder --preset tune --data.init_args.mels=runs/mels
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from vitalk.errors import UserError
from vitalk.files import write_whole

from ..corpus import Clip
from ..features import Speech
from ..mel import mel_spec
from .data import Segments, Waves


def mel_path(folder: str | Path, clip_id: str) -> Path:
    """Where the mel of a clip lies."""
    return Path(folder) / f"{quote(clip_id, safe=' ')}.npy"


def write_mels(predict: Callable[[dict[str, Any]], Tensor], data: Speech, folder: str | Path) -> int:
    """Keep what a model makes of every utterance of a corpus; returns how many were made.

    predict: a batch -> log-mel [batch, mels, frames] with the batch's own durations. Files are float16 [mels, frames];
    those that are there already stay, so that a stopped run goes on where it was.
    """
    from rich.progress import track

    ids = {data.cache.name(clip): clip.id for clip in [*data.train, *data.test]}
    made = 0
    for part in ("train", "test"):
        for batch in track(data.whole_dataloader(part), f"mels, {part} part", transient=True):
            paths = [mel_path(folder, ids[name]) for name in batch["utterances"]]
            if all(path.is_file() for path in paths):
                continue
            with torch.inference_mode():
                mels = predict(batch)
            for path, mel, length in zip(paths, mels, batch["mel_lengths"].tolist(), strict=True):
                buffer = io.BytesIO()
                np.save(buffer, mel[:, :length].half().cpu().numpy())
                write_whole(path, buffer.getvalue())
                made += 1
    return made


class HeardWaves(Waves):
    """``Waves`` with mels: ``self[(number, start)]`` is (wave int16 [segment], mel float16 [mels, segment / hop]).

    Starts are moved back to the frame they lie in. mels: a file for each wave. hop: samples.
    """

    def __init__(self, files: list[Path], mels: list[Path], segment: int, hop: int):
        super().__init__(files, segment)
        self.mels, self.hop = mels, hop

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        number, start = place
        frame, count = start // self.hop, self.segment // self.hop
        mel = np.load(self.mels[number], mmap_mode="r", allow_pickle=False)[:, frame : frame + count]
        mel = np.pad(mel, ((0, 0), (0, count - mel.shape[1])), mode="edge")
        return super().__getitem__((number, frame * self.hop)), torch.from_numpy(mel)


class HeardSegments(Segments):
    """``Segments`` of those recordings whose mels lie in ``mels``: batches {"wave", "heard"}.

    wave: [batch, segment]. heard: log-mel [batch, mels, segment / hop], moved by the gain of its wave.
    mels: a folder of ``write_mels``. options: of ``Segments``.
    Raises UserError where there are none for the recordings, and for segments that are no whole number of frames.
    """

    PROVIDES = ("mel",)

    def __init__(
        self,
        mels: str,
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
    ):
        super().__init__(path, mel, segment, batch_size, workers, hold_out, limit, gain, cache, seed)
        self.save_hyperparameters()
        self.hop = mel_spec(mel).hop
        if segment % self.hop:
            raise UserError(
                f"a segment of {segment} samples is no whole number of frames; give a multiple of {self.hop}"
            )
        self.clips = [clip for clip in self.clips if mel_path(mels, clip.id).is_file()]
        self.parts = {
            part: [clip for clip in clips if mel_path(mels, clip.id).is_file()] for part, clips in self.parts.items()
        }
        if not self.clips:
            raise UserError(f"{mels} has no mels of these recordings; make them with vitalk mels")

    def dataset(self, clips: list[Clip]) -> HeardWaves:
        """The segments of decoded recordings, with their mels."""
        files, mels = zip(
            *((self.cache.path(clip), mel_path(self.hparams.mels, clip.id)) for clip in clips), strict=True
        )
        return HeardWaves(list(files), list(mels), self.hparams.segment, self.hop)

    def on_after_batch_transfer(self, batch: list[Tensor], _: int) -> dict[str, Tensor]:
        """16-bit samples and half-precision mels -> floats, both with the same random gain while training."""
        wave, mel = batch[0].float() / 32767, batch[1].float()
        if self.hparams.gain and self.trainer.training:
            gain = self.hparams.gain * (2 * torch.rand(len(wave), 1, device=wave.device) - 1) * np.log(10) / 20
            wave, mel = wave * gain.exp(), mel + gain[..., None]
        return {"wave": wave, "heard": mel}
