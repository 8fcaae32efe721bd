"""How close a recording is to another of the same words: pitch, voicing, timbre, energy, tempo."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from vitalk.errors import UserError
from vitalk.speech.audio import Audio

from .need import need

PRESET = "vitalk"  # 24 kHz, frames of 50 ms every 12.5 ms, 80 mels
CEPSTRA = 13
LEVEL = -23.0  # dB
RANGE = 50.0  # dB below an utterance's loudest frame that count for energy
LONGEST = 60.0  # s, as the alignment of two recordings takes memory by their product
DECIBEL = 10 * np.sqrt(2) / np.log(10)


@dataclass(frozen=True)
class Features:
    """Frames of one recording: cepstra [frames, 13], f0 [frames] in Hz (0 where unvoiced), energy [frames] in dB."""

    cepstra: np.ndarray
    f0: np.ndarray
    energy: np.ndarray


@dataclass(frozen=True)
class Likeness:
    """Distances between two recordings of the same words; nan where no frame is voiced in both.

    f0_rmse_hz, f0_rmse_cents: over the frames voiced in both. voicing_error: share of the frames, voiced in one
    only. mcd_db: mel-cepstral distortion, dB. energy_mae_db: dB. tempo: seconds of the recording by the reference's,
    without the quiet at the ends where that is cut.
    """

    f0_rmse_hz: float
    f0_rmse_cents: float
    voicing_error: float
    mcd_db: float
    energy_mae_db: float
    tempo: float


def compare(audio: Audio, reference: Audio, align: bool = True) -> Likeness:
    """Distances of ``audio`` from ``reference``, a recording of the same words.

    align: the quiet at both ends is cut and frames are matched by dynamic time warping over the cepstra, as
    speakers differ in tempo; every pair of frames on the path counts alike. Without it frame meets frame, and the
    longer recording is cut: for copies, such as a vocoder's. Both are brought to -23 dB first, so that loudness
    counts for nothing.
    Raises UserError for silence, for sound that is too short (25 ms) and, with align, longer than 60 s.
    """
    pair = [_level(sound) for sound in (audio, reference)]
    if align:
        pair = [sound.trimmed() for sound in pair]
        if (longest := max(sound.seconds for sound in pair)) > LONGEST:
            raise UserError(f"{longest:.0f} s of sound are too long to align; cut it into parts of at most 60 s")
    ours, theirs = (features(sound) for sound in pair)
    if align:
        rows, columns = warp(ours.cepstra, theirs.cepstra)
    else:
        rows = columns = np.arange(min(len(ours.f0), len(theirs.f0)))
    hertz, cents, voicing = f0_errors(ours.f0[rows], theirs.f0[columns])
    return Likeness(
        hertz, cents, voicing,
        distortion(ours.cepstra[rows], theirs.cepstra[columns]),
        float(np.abs(ours.energy[rows] - theirs.energy[columns]).mean()),
        pair[0].seconds / pair[1].seconds,
    )  # fmt: skip


def features(audio: Audio) -> Features:
    """Cepstra, F0 and energy of a recording, at 24 kHz in frames of 12.5 ms.

    Cepstra 1 to 13 are a cosine transform of the log-mel spectrogram (80 mels, magnitudes), scaled as those of a
    minimum-phase filter: log|H| = c_0 + sum c_m cos(m w). F0 is WORLD's (dio, 60 to 800 Hz). Energy is the frame's
    magnitude, at least 50 dB below the loudest: what is quieter is nobody's prosody.
    """
    torch = need("torch")
    need("librosa")
    need("pyworld")
    from vitalk.speech.mel import compress, energy, magnitudes, mel_spec
    from vitalk.speech.pitch import f0

    spec = mel_spec(PRESET)
    audio = audio.resampled(spec.rate)
    if len(audio.samples) <= spec.n_fft // 2:
        raise UserError(f"{1000 * audio.seconds:.0f} ms of sound are too short to compare; 26 ms are needed")
    magnitude = magnitudes(torch.from_numpy(audio.samples)[None], spec)
    loud = 20 * np.log10(np.maximum(energy(magnitude)[0].double().numpy(), 1e-10))
    return Features(
        cepstra(compress(magnitude, spec)[0].double().numpy()),
        f0(audio, spec.hop, spec.center),
        np.maximum(loud, loud.max() - RANGE),
    )


def cepstra(log_mel: np.ndarray) -> np.ndarray:
    """Mel cepstra 1 to 13 of natural-log mel magnitudes [mels, frames], float64 [frames, 13]."""
    return log_mel.T @ _cosines(len(log_mel))


@cache
def _cosines(mels: int) -> np.ndarray:
    places = (np.arange(mels) + 0.5)[:, None] / mels
    return 2 / mels * np.cos(np.pi * places * np.arange(1, CEPSTRA + 1))


def warp(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames of x [frames, dim] and y [other frames, dim] that belong together: two int64 [path], both rising.

    Dynamic time warping over Euclidean distances with steps (1, 1), (0, 1), (1, 0) of equal weight, by librosa.
    """
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    _, path = need("librosa").sequence.dtw(C=np.sqrt(np.maximum(squares, 0)))
    rows, columns = path[::-1].T
    return rows, columns


def distortion(x: np.ndarray, y: np.ndarray) -> float:
    """Mel-cepstral distortion in dB of cepstra [frames, dim] that belong together, without c_0 (Kubichek 1993).

    The mean over frames of 10 sqrt(2) / ln 10 times the Euclidean distance.
    """
    return float(DECIBEL * np.linalg.norm(x - y, axis=1).mean())


def mel_cepstral_distortion(audio: Audio, reference: Audio, align: bool = True) -> float:
    """``compare(...).mcd_db``: mel-cepstral distortion in dB, over 13 cepstra without c_0."""
    return compare(audio, reference, align).mcd_db


def f0_errors(f0: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """(RMSE in Hz, RMSE in cents, voicing error) of F0 [frames] in Hz against another [frames]; 0 is unvoiced.

    The RMSE are over the frames voiced in both, nan without any; the voicing error is the share of all frames.
    """
    both = (f0 > 0) & (reference > 0)
    voicing = float(np.mean((f0 > 0) != (reference > 0)))
    if not both.any():
        return float("nan"), float("nan"), voicing
    hertz, cents = f0[both] - reference[both], 1200 * np.log2(f0[both] / reference[both])
    return float(np.sqrt(np.mean(hertz**2))), float(np.sqrt(np.mean(cents**2))), voicing


def _level(audio: Audio) -> Audio:
    level = audio.rms()
    if not np.isfinite(level):
        raise UserError("silence cannot be compared with speech")
    # In floats nothing clips, so that, unlike Audio.levelled, peaks set no limit.
    return Audio((audio.samples * 10 ** ((LEVEL - level) / 20)).astype(np.float32), audio.rate)
