"""Training Transformer TTS with Lightning, on the batches of ``vitalk.speech.features.Speech``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.training import AcousticTraining, ForVoice, load_module
from vitalk.speech.acoustic.variance import Spread
from vitalk.speech.mel import mel_spec

from .losses import Distance, losses
from .model import Output, TransformerTTS
from .variants import (
    transformer_tts,
    transformer_tts_fs2,
    transformer_tts_small,
    transformer_tts_soobinseo,
    transformer_tts_teacher,
)

VARIANTS: dict[str, Callable[..., TransformerTTS]] = {
    "paper": transformer_tts,
    "teacher": transformer_tts_teacher,
    "fs2": transformer_tts_fs2,
    "soobinseo": transformer_tts_soobinseo,
    "small": transformer_tts_small,
}


class TransformerTTSTraining(AcousticTraining):
    """Trains Transformer TTS on symbols and mels, every frame told the true ones before it.

    variant: "paper", "teacher", "fs2", "soobinseo" or "small". model_args: further arguments of ``TransformerTTS``.
    n_symbols, n_speakers: from the data; one speaker has no embedding.
    distance: of mels, "l2" (paper) or "l1". stop_weight: of the one step that is the end, the paper's is 5 to 8.
    guided: in how many of the last layers half of the heads are held to the diagonal, 0 for none; how strongly, the
    weight of "guided" says.
    lr, options: see ``AcousticTraining``; "noam" is the paper's.

    Raises UserError for a loss that is not finite.
    """

    FORMAT, NAME = "vitalk transformer-tts", "Transformer TTS"
    FOLLOWS = ()

    def __init__(
        self,
        n_symbols: int,
        n_speakers: int = 1,
        variant: Literal["paper", "teacher", "fs2", "soobinseo", "small"] = "paper",
        model_args: dict[str, Any] | None = None,
        distance: Distance = "l2",
        stop_weight: float = 5.0,
        guided: int = 0,
        lr: float = 7e-4,
        **options: Any,
    ):
        super().__init__(n_symbols, n_speakers, model_args, lr=lr, **options)

    def build(self, f0: Spread, energy: Spread) -> nn.Module:
        """Make the network; pitch and energy are none of its inputs."""
        h = self.hparams
        speakers = h.n_speakers if h.n_speakers > 1 else 0
        options = {"mels": mel_spec(h.mel).n_mels, "speakers": speakers, **(h.model_args or {})}
        self.net = VARIANTS[h.variant](h.n_symbols, **options)
        return self.net

    def forward(self, batch: dict[str, Tensor], maps: int = 0) -> Output:
        """A batch, told its true frames. maps: see ``TransformerTTS.forward``."""
        speaker = None if self.net.speakers is None else batch["speaker"]
        return self.net(batch["ids"], batch["text_lengths"], batch["mel"], batch["mel_lengths"], speaker, maps)

    def mel(self, batch: dict[str, Tensor]) -> Tensor:  # noqa: D102
        return self(batch).mel

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of a batch; see ``losses`` of this package."""
        h = self.hparams
        return losses(self(batch, h.guided), batch["mel"], h.distance, h.stop_weight, h.guided > 0)


class TorchOnly(ForVoice):
    """``ForVoice`` of networks that no graph holds; the durations are those in the attention."""

    def forward(self, *told: Tensor | None) -> tuple[Tensor, Tensor]:
        """See ``ForVoice``. Raises UserError where a graph is to be made of it."""
        if torch.compiler.is_compiling():
            raise UserError(
                "Transformer TTS ends where it says so itself, which no graph holds; it speaks in torch only"
            )
        return super().forward(*told)


def load_trained(path: str | Path) -> tuple[TransformerTTS, dict[str, Any]]:
    """``load_module`` without the training: (network in eval mode, what is known about it)."""
    module, about = load_module(path, TransformerTTSTraining)
    return module.net, about


def load_for_voice(path: str | Path) -> tuple[ForVoice, dict[str, Any]]:
    """``load_trained`` in the form that voices are made of."""
    net, about = load_trained(path)
    return TorchOnly(net, about["follows"]), about
