"""HiFiNet: from the 16 kHz mel that an acoustic model predicts well to a 48 kHz wave (arXiv 2110.12612, section 2.3).

The paper says what goes in and out and that it trains adversarially; the builds are ours. Each makes 600 samples a mel
frame of 12.5 ms: "hifinet" and "hifinet-large" are HiFi-GANs of five upsampling stages, "hifinet-istft", which costs
least on a processor, is a Vocos whose inverse Fourier transform is that of 48 kHz. Mels of 24 kHz and a hop of 300 fit
as well. For other rates give rates and kernels, or n_fft and hop: [5, 5, 4, 3] and [11, 11, 8, 7] make 24 kHz.

    vitalk train vocoder --preset hifinet-cpu --data FOLDER_OF_48_KHZ_RECORDINGS
    vitalk speak "Hello." --voice runs/delightfultts-cpu --vocoder runs/vocoder-hifinet-cpu -o hello.wav
"""

from typing import Any

from torch import nn

from ..mel import MelSpec
from .hifigan import HifiGan
from .vocos import Vocos

STAGES = {"rates": (5, 5, 4, 3, 2), "kernels": (11, 11, 8, 7, 4)}
SIZES: dict[str, dict[str, Any]] = {
    "hifinet": {"channels": 128, "resblock": 2, **STAGES},
    "hifinet-large": {"channels": 256, "resblock": 1, **STAGES},
    "hifinet-istft": {"dim": 256, "intermediate": 768, "layers": 8, "n_fft": 2400, "hop": 600},
}


def maker(name: str, spec: MelSpec) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of a build, and its arguments for mels of ``spec``: what ``generators.create`` asks for."""
    if name != "hifinet-istft":
        return HifiGan, SIZES[name]
    return Vocos, {**SIZES[name], "padding": "center" if spec.center else "same"}
