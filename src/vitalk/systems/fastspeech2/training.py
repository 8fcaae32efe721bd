"""Training FastSpeech 2 with Lightning, on the batches of ``vitalk.speech.features.Speech``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitalk.speech.acoustic.training import AcousticTraining, ForVoice, load_module
from vitalk.speech.acoustic.variance import Spread
from vitalk.speech.mel import mel_spec
from vitalk.speech.pitch import average_by_duration
from vitalk.speech.wavelet import pitch_spectrogram

from .model import FastSpeech2, Output, Targets
from .variants import fastspeech2, fastspeech2_ming, fastspeech2_small

VARIANTS: dict[str, Callable[..., FastSpeech2]] = {
    "paper": fastspeech2,
    "ming": fastspeech2_ming,
    "small": fastspeech2_small,
}


class FastSpeech2Training(AcousticTraining):
    """Trains FastSpeech 2 on symbols, durations, pitch, energy and mels.

    variant: "paper", "ming" or "small". model_args: further arguments of ``FastSpeech2``. n_symbols, n_speakers: from
    the data; one speaker has no embedding. options: the others of ``AcousticTraining``; "noam" is the paper's.

    Raises UserError for data without durations and for a loss that is not finite.
    """

    FORMAT, NAME = "vitalk fastspeech2", "FastSpeech 2"

    def __init__(
        self,
        n_symbols: int,
        n_speakers: int = 1,
        variant: Literal["paper", "ming", "small"] = "paper",
        model_args: dict[str, Any] | None = None,
        **options: Any,
    ):
        super().__init__(n_symbols, n_speakers, model_args, **options)

    @property
    def acoustic(self) -> FastSpeech2:
        """The network that makes spectrograms."""
        return self.net

    def build(self, f0: Spread, energy: Spread) -> nn.Module:
        """Make the network for a corpus whose log F0 and energy are spread so."""
        h = self.hparams
        options: dict[str, Any] = {"f0_spread": f0, "energy_spread": energy, **(h.model_args or {})}
        options["speakers"] = h.n_speakers if h.n_speakers > 1 else 0
        self.net = VARIANTS[h.variant](h.n_symbols, mels=mel_spec(h.mel).n_mels, **options)
        return self.net

    def forward(self, batch: dict[str, Tensor]) -> tuple[Output, Targets]:
        """A batch, teacher-forced with its durations, pitch and energy -> what the network gives, and the targets."""
        told, targets = self.told(batch)
        return self.net(**told), targets

    def mel(self, batch: dict[str, Tensor]) -> Tensor:  # noqa: D102
        return self(batch)[0].mel

    def told(self, batch: dict[str, Tensor]) -> tuple[dict[str, Any], Targets]:
        """What the network is given of a batch, by the names of its arguments, and the targets."""
        targets = self.targets(batch)
        told = {"ids": batch["ids"], "text_lengths": batch["text_lengths"], "durations": targets.durations,
                "pitch": self.pitch_told(batch, targets), "energy": targets.energy}  # fmt: skip
        return told | ({} if self.acoustic.speakers is None else {"speaker": batch["speaker"]}), targets

    def targets(self, batch: dict[str, Tensor]) -> Targets:
        """What the network is compared with, at the levels that it predicts."""
        durations, energy = self.durations_of(batch), batch["energy"]
        if self.acoustic.energy_level == "phoneme":
            energy = average_by_duration(energy, durations)
        common = {"mel": batch["mel"], "durations": durations, "energy": energy}
        if self.acoustic.pitch_level == "phoneme":
            return Targets(**common, pitch=average_by_duration(batch["pitch"], durations))
        if not hasattr(self.acoustic.pitch, "predict"):
            return Targets(**common, pitch=batch["pitch"].clamp(min=1.0))
        spectrogram, mean, std = self._wavelets(batch)
        return Targets(
            **common, spectrogram=spectrogram, voiced=batch["f0"] > 0, pitch_mean=mean, pitch_std=std
        )  # fmt: skip

    def pitch_told(self, batch: dict[str, Tensor], targets: Targets) -> Tensor:
        """The pitch that the network is given in place of its own: wavelet pitch is told where there is no voice."""
        return targets.pitch if targets.pitch is not None else batch["f0"]

    def _wavelets(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        spec = mel_spec(self.hparams.mel)
        # Each curve for itself: the transform is of whole curves, and padding would be a part of it.
        rows = [
            pitch_spectrogram(pitch[:length].log(), spec.hop / spec.rate)
            for pitch, length in zip(batch["pitch"], batch["mel_lengths"].tolist(), strict=True)
        ]
        spectrogram = nn.utils.rnn.pad_sequence([row[0] for row in rows], batch_first=True)
        return spectrogram.float(), *(torch.stack([row[i] for row in rows]).float() for i in (1, 2))

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The paper's losses of a batch, teacher-forced with its durations, pitch and energy."""
        return self.acoustic.losses(*self(batch))


def load_trained(path: str | Path) -> tuple[FastSpeech2, dict[str, Any]]:
    """``load_module`` without the training: (network in eval mode, what is known about it)."""
    module, about = load_module(path, FastSpeech2Training)
    return module.net, about


def load_for_voice(path: str | Path) -> tuple[ForVoice, dict[str, Any]]:
    """``load_trained`` in the form that voices are made of: what ``vitalk export`` asks of an acoustic model."""
    net, about = load_trained(path)
    return ForVoice(net, about["follows"]), about
