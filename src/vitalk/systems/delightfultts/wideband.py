"""What HiFiNet makes of the band that its mels do not show: measured against resampled 16 kHz, which has nothing there.

The corpus that ships has 24 kHz, so the band measured is 8 to 12 kHz: half of the first octave of what 48 kHz adds.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from torch import Tensor

from vitalk.experiments import short_run
from vitalk.speech.mel import log_mel, mel_spec
from vitalk.speech.resample import Resample
from vitalk.speech.vocoder.data import Segments
from vitalk.speech.vocoder.griffin_lim import griffin_lim
from vitalk.speech.vocoder.training import VocoderTraining

RATE, LOW = 24_000, 16_000  # Hz of the corpus, and of the mels
BELOW, ABOVE = 7_000, 8_000  # Hz: between them the resampler falls
N_FFT, HOP, FLOOR = 1024, 256, 1e-2  # of the spectra compared, whose full scale is 256
SIZE: dict[str, Any] = {"dim": 128, "intermediate": 384, "layers": 4, "n_fft": 1200, "hop": 300}
LENGTH = 24_000  # samples of the held-out segments that are compared


def wideband(data: Path, seconds: float, tick: Callable[[], object]) -> dict[str, dict[str, float]]:
    """Log-spectral distances in dB of held-out speech, "below" 7 kHz and "above" 8 kHz, and the level above, "level".

    Of "hifinet", trained for so many seconds; of "resampled", the recordings themselves by way of 16 kHz; and of
    "griffin-lim" from the same mels, resampled. "level" is the mean level above 8 kHz less that of the recordings, dB.
    """
    seed_everything(0, verbose=False)
    limit = int(min(600, max(12, 2 * seconds)))
    corpus = Segments(str(data / "speech" / "kokoro_en"), "16k", 9_000, 8, 0, limit=limit, hold_out=0.1, rate=RATE)
    model = VocoderTraining(
        "hifinet-istft", SIZE, "16k", gan_start=None, lr=2e-3, warmup_steps=20, mel_weight=15.0, rate=RATE
    )
    short_run(model, corpus, None, tick, seconds)
    held_out = corpus.waves["test"]
    held_out.segment = LENGTH
    starts = ((held_out.lengths - LENGTH).clip(0) // 2).tolist()
    waves = torch.stack([held_out[place] for place in list(enumerate(starts))[:16]]).float() / 32767
    return compare(model.generator.eval(), waves)


@torch.inference_mode()
def compare(generator: Callable[[Tensor], Tensor], waves: Tensor) -> dict[str, dict[str, float]]:
    """``wideband`` of a generator of mels "16k" that makes 24 kHz, and of what it is compared with."""
    down, up = Resample(RATE, LOW), Resample(LOW, RATE)
    narrow = down(waves)
    mel = log_mel(narrow, mel_spec("16k"))
    made = {"hifinet": generator(mel), "resampled": up(narrow), "griffin-lim": up(griffin_lim(mel, mel_spec("16k")))}
    real, below, above = spectra(waves), N_FFT * BELOW // RATE, -(-N_FFT * ABOVE // RATE)
    found = {}
    for name, wave in made.items():
        fake = spectra(wave[:, : waves.shape[1]])
        off = fake - real
        found[name] = {
            "below": float(distance(off[:, :below])),
            "above": float(distance(off[:, above:])),
            "level": float(off[:, above:].mean()),
        }
    return found


def spectra(wave: Tensor) -> Tensor:
    """wave [batch, samples] -> magnitudes in dB [batch, bins, frames], nothing lower than the floor."""
    window = torch.hann_window(N_FFT)
    return 20 * torch.stft(wave.float(), N_FFT, HOP, window=window, return_complex=True).abs().clamp(min=FLOOR).log10()


def distance(off: Tensor) -> Tensor:
    """Differences in dB [batch, bins, frames] -> log-spectral distance: root mean square over bins, mean of frames."""
    return off.square().mean(1).sqrt().mean()
