"""Pictures of one recording: spectrogram, pitch, alignment."""

from pathlib import Path
from typing import Any

import numpy as np

from vitalk.errors import UserError
from vitalk.files import write_whole
from vitalk.speech.audio import Audio

from .need import need
from .recordings import Recording, sound


def draw(recording: Recording, path: str | Path) -> Path:
    """Write a PNG: the spectrogram, F0 of the recording and its reference, and the alignment where there is one.

    Recordings too short for a spectrogram (25 ms) get empty panels. The file is whole or absent.
    Raises UserError for damaged sound and where matplotlib is not installed.
    """
    import io

    need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = 2 + (recording.alignment is not None)
    figure = Figure(figsize=(9, 2.6 * panels), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(panels, 1)
    audio = sound(recording.audio, recording.name)
    sounds = {"recording": audio}
    if recording.reference is not None:
        sounds["reference"] = sound(recording.reference, f"the reference of {recording.name}")
    # Dollar signs would start a formula.
    axes[0].set_title(f"{recording.name}: {recording.text[:90]}".replace("$", r"\$"), fontsize=9)
    _spectrogram(axes[0], audio)
    _pitch(axes[1], sounds)
    axes[1].set_xlim(axes[0].get_xlim())
    if recording.alignment is not None:
        axes[2].imshow(np.asarray(recording.alignment), origin="lower", aspect="auto", interpolation="nearest")
        axes[2].set(xlabel="frame", ylabel="symbol")
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=100)
    return write_whole(Path(path), target.getvalue())


def _spectrogram(axis: Any, audio: Audio) -> None:
    torch = need("torch")
    from vitalk.speech.mel import log_mel, mel_spec

    spec = mel_spec("vitalk")
    try:
        mel = log_mel(torch.from_numpy(audio.resampled(spec.rate).samples)[None], spec)[0].numpy()
    except UserError:
        mel = np.zeros((spec.n_mels, 1))
    extent = (0, audio.seconds, 0, spec.n_mels)
    axis.imshow(mel, origin="lower", aspect="auto", interpolation="nearest", extent=extent)
    axis.set(ylabel="mel band")


def _pitch(axis: Any, sounds: dict[str, Audio]) -> None:
    need("pyworld")
    from vitalk.speech.mel import mel_spec
    from vitalk.speech.pitch import f0

    spec = mel_spec("vitalk")
    for (name, audio), style in zip(sounds.items(), ("-", ":"), strict=False):
        found = f0(audio.resampled(spec.rate), spec.hop, spec.center)
        times = (np.arange(len(found)) + 0.5) * spec.hop / spec.rate
        axis.plot(times, np.where(found > 0, found, np.nan), style, label=name)
    axis.set(xlabel="s", ylabel="F0, Hz")
    axis.legend(loc="upper right", fontsize=8)
