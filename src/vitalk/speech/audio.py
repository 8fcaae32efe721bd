"""Sound in memory and in files: read anything, resample, level, write. Needs no torch."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vitalk.errors import UserError

FORMATS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "OPUS"), "opus": ("OGG", "OPUS"),
           "mp3": ("MP3", "MPEG_LAYER_III")}  # fmt: skip
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)  # Hz


@dataclass(frozen=True)
class Audio:
    """Mono sound: samples [time] float32, full scale at 1, and rate in Hz."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate

    @classmethod
    def load(cls, source: str | Path | BinaryIO, rate: int | None = None) -> "Audio":
        """Read WAV, FLAC, Ogg Vorbis or Opus, MP3 and whatever else libsndfile knows; channels are averaged.

        rate: resample to it, Hz. Raises UserError for files that are missing, empty, damaged or no sound.
        """
        import soundfile

        name = source if isinstance(source, str | Path) else getattr(source, "name", "the input")
        if isinstance(source, str | Path) and not Path(source).is_file():
            raise UserError(f"there is no sound file at {source}")
        try:
            samples, found = soundfile.read(source, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
            reason = str(error).rpartition(": ")[2].rstrip(".")
            raise UserError(f"{name} cannot be read as sound ({reason}); give WAV, FLAC, Ogg or MP3") from None
        if not len(samples):
            raise UserError(f"{name} holds no sound")
        if not np.isfinite(samples).all():
            raise UserError(f"{name} holds samples that are no numbers; convert it again")
        audio = cls(samples.mean(1), int(found))
        return audio if rate is None else audio.resampled(rate)

    def resampled(self, rate: int) -> "Audio":
        """The same sound at another rate, Hz."""
        if rate == self.rate:
            return self
        import soxr

        return Audio(soxr.resample(self.samples, self.rate, rate).astype(np.float32), rate)

    def rms(self) -> float:
        """Root mean square in dB relative to full scale; minus infinity for silence."""
        power = float(np.mean(np.square(self.samples, dtype=np.float64))) if len(self.samples) else 0.0
        return 10 * np.log10(power) if power > 0 else float("-inf")

    def levelled(self, target: float = -23.0) -> "Audio":
        """Scaled to an RMS of ``target`` dB relative to full scale, or less where peaks would clip; silence stays."""
        level, peak = self.rms(), float(np.abs(self.samples).max(initial=0.0))
        if not np.isfinite(level):
            return self
        gain = min(10 ** ((target - level) / 20), 0.99 / peak)
        return replace(self, samples=(self.samples * gain).astype(np.float32))

    def trimmed(self, threshold: float = -40.0, margin: float = 0.05) -> "Audio":
        """Without the quiet at both ends: what lies ``threshold`` dB below the loudest 20 ms, but for ``margin`` s.

        Silence stays as it is.
        """
        frame = max(int(0.02 * self.rate), 1)
        whole = len(self.samples) // frame * frame
        if not whole:
            return self
        power = np.square(self.samples[:whole], dtype=np.float64).reshape(-1, frame).mean(1)
        loud = np.flatnonzero(power > max(power.max() * 10 ** (threshold / 10), 1e-12))
        if not len(loud):
            return self
        keep = int(margin * self.rate)
        start, end = loud[0] * frame - keep, (loud[-1] + 1) * frame + keep
        return replace(self, samples=self.samples[max(start, 0) : end])

    def encoded(self, kind: str = "wav") -> bytes:
        """The bytes of a file: wav and flac with 16 bits, ogg or opus (Ogg Opus), mp3.

        Opus takes the next higher of its own rates where the sound has none of them.
        Raises UserError for another kind.
        """
        target = io.BytesIO()
        _write(iter([self]), target, kind)
        return target.getvalue()

    def save(self, path: str | Path) -> Path:
        """Write a file whose suffix names the kind, whole or not at all.

        Raises UserError for unknown suffixes and folders that cannot be written.
        """
        save_parts([self], path)
        return Path(path)


def save_parts(parts: Iterable[Audio], path: str | Path) -> float:
    """Write sounds of one rate one after the other into a file, each as it comes; returns their seconds.

    The suffix names the kind. The file is whole or absent, whatever happens while the parts are made.
    Raises UserError as ``Audio.save`` does.
    """
    from vitalk.files import replacing

    path = Path(path)
    kind = path.suffix.lstrip(".").lower() or "wav"
    _known(kind)
    parts = iter(parts)
    first = next(parts)  # nothing is touched where there is nothing to write
    with replacing(path) as partial, partial.open("wb") as file:
        return _write(chain([first], parts), file, kind)


def _known(kind: str) -> tuple[str, str]:
    if kind not in FORMATS:
        raise UserError(f"cannot write {kind}; choose one of {', '.join(FORMATS)}")
    return FORMATS[kind]


def _write(parts: Iterator[Audio], target: BinaryIO, kind: str) -> float:
    import soundfile

    container, codec = _known(kind)
    first = next(parts)
    rate = first.rate
    if codec == "OPUS" and rate not in OPUS_RATES:
        rate = next((r for r in OPUS_RATES if r >= rate), OPUS_RATES[-1])
    seconds = 0.0
    try:
        with soundfile.SoundFile(target, "w", rate, 1, format=container, subtype=codec) as file:
            for part in chain([first], parts):
                file.write(np.clip(part.resampled(rate).samples, -1, 1))
                seconds += part.seconds
    except soundfile.LibsndfileError as error:
        raise OSError(str(error)) from None
    return seconds
