"""Training FastSpeech with Lightning, on a teacher's lessons or on real mels with an aligner's durations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from vitalk.speech.acoustic.training import AcousticTraining, ForVoice, load_module
from vitalk.speech.acoustic.variance import Spread
from vitalk.speech.mel import mel_spec
from vitalk.systems.transformer_tts.losses import Distance

from .model import FastSpeech, Output, fastspeech, fastspeech_rerun, fastspeech_small, losses

VARIANTS: dict[str, Callable[..., FastSpeech]] = {
    "paper": fastspeech,
    "rerun": fastspeech_rerun,
    "small": fastspeech_small,
}


class FastSpeechTraining(AcousticTraining):
    """Trains FastSpeech on symbols, durations and mels.

    The data is ``TaughtSpeech``, as in the paper, or ``Speech`` with an aligner.
    variant: "paper", "rerun" or "small". model_args: further arguments of ``FastSpeech``. n_symbols, n_speakers: from
    the data; one speaker has no embedding. distance: of mels, "l2" (paper) or "l1". lr, options: see
    ``AcousticTraining``; "noam" is the paper's.

    Raises UserError for data without durations and for a loss that is not finite.
    """

    FORMAT, NAME = "vitalk fastspeech", "FastSpeech"
    FOLLOWS = ("speed",)
    REMEDY = "name the model.safetensors of a teacher (TaughtSpeech) or of an aligner"

    def __init__(
        self,
        n_symbols: int,
        n_speakers: int = 1,
        variant: Literal["paper", "rerun", "small"] = "paper",
        model_args: dict[str, Any] | None = None,
        distance: Distance = "l2",
        lr: float = 8e-4,
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

    def forward(self, batch: dict[str, Tensor]) -> Output:
        """A batch, told its durations."""
        speaker = None if self.net.speakers is None else batch["speaker"]
        return self.net(batch["ids"], batch["text_lengths"], self.durations_of(batch), speaker)

    def mel(self, batch: dict[str, Tensor]) -> Tensor:  # noqa: D102
        return self(batch).mel

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of a batch; see ``losses`` of the model."""
        return losses(self(batch), batch["mel"], batch["durations"], self.hparams.distance)


def load_trained(path: str | Path) -> tuple[FastSpeech, dict[str, Any]]:
    """``load_module`` without the training: (network in eval mode, what is known about it)."""
    module, about = load_module(path, FastSpeechTraining)
    return module.net, about


def load_for_voice(path: str | Path) -> tuple[ForVoice, dict[str, Any]]:
    """``load_trained`` in the form that voices are made of: what ``vitalk export`` asks of an acoustic model."""
    net, about = load_trained(path)
    return ForVoice(net, about["follows"]), about
