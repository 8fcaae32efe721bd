"""Training DelightfulTTS with Lightning, on the batches of ``vitalk.speech.features.Speech``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import length_mask
from vitalk.speech.acoustic.training import AcousticTraining, load_module, read_trained
from vitalk.speech.acoustic.variance import Spread
from vitalk.speech.align.aligner import ForwardSumLoss, binarisation_loss, hard_durations, priors
from vitalk.speech.align.search import check_lengths, path_of
from vitalk.speech.mel import mel_spec
from vitalk.speech.pitch import average_by_duration

from .model import DelightfulTTS, Targets
from .variants import (
    delightfultts,
    delightfultts_coqui,
    delightfultts_multilingual,
    delightfultts_small,
    delightfultts_voicesmith,
)

VARIANTS: dict[str, Callable[..., DelightfulTTS]] = {
    "paper": delightfultts,
    "voicesmith": delightfultts_voicesmith,
    "multilingual": delightfultts_multilingual,
    "coqui": delightfultts_coqui,
    "small": delightfultts_small,
}
MIXED = 0.5  # share of the items that get predicted prosody once it is mixed in


class DelightfulTTSTraining(AcousticTraining):
    """Trains DelightfulTTS on symbols, durations, pitch and mels, whose own prosody the decoder hears.

    variant: "paper", "voicesmith", "multilingual", "coqui" or "small". model_args: further arguments of
    ``DelightfulTTS``. n_symbols, n_speakers: from the data; one speaker has no embedding.
    languages: the number of each speaker's language, in the order of their names, None for one language.
    mix_from: the part of the run, 0 to 1, from which on half of the items get predicted prosody, so that the decoder
    meets what it will be told when speaking; 1 for never (ours).
    init: the model.safetensors of a training to go on from; new speakers begin as the mean of its own.
    speaker_steps: at first only the speakers' vectors learn, for so many steps.
    binarise_from: step from which on the aligner inside, where the model has one and the data no durations, is drawn
    to its hard path, fully within a thousand more.
    mel, options: see ``AcousticTraining``.

    The best checkpoint is that of the least mel error with predicted prosody, which is what will be spoken.
    Raises UserError for data without durations where no aligner is inside, and for a loss that is not finite.
    """

    FORMAT, NAME, MONITOR = "vitalk delightfultts", "DelightfulTTS", "val/mel_predicted"
    WEIGHTS = {"utterance": 0.5, "phoneme": 0.5}
    REMEDY = f"{AcousticTraining.REMEDY}, or set model_args.aligner"

    def __init__(
        self,
        n_symbols: int,
        n_speakers: int = 1,
        variant: Literal["paper", "voicesmith", "multilingual", "coqui", "small"] = "paper",
        model_args: dict[str, Any] | None = None,
        mel: str = "16k",
        languages: list[int] | None = None,
        mix_from: float = 0.9,
        init: str | None = None,
        speaker_steps: int = 0,
        binarise_from: int = 18_000,
        **options: Any,
    ):
        super().__init__(n_symbols, n_speakers, model_args, mel, **options)
        self.forward_sum = ForwardSumLoss()
        if languages is not None and len(languages) != n_speakers:
            raise UserError(f"{len(languages)} languages are named for {n_speakers} speakers; name one for each")
        self.register_buffer("language_of", torch.tensor(languages or [0] * n_speakers), persistent=False)

    def build(self, f0: Spread, energy: Spread) -> nn.Module:
        """Make the network for a corpus whose log F0 and energy are spread so."""
        h = self.hparams
        options: dict[str, Any] = {"f0_spread": f0, "energy_spread": energy}
        options["speakers"] = h.n_speakers if h.n_speakers > 1 or h.init is not None else 0
        options["languages"] = max(h.languages) + 1 if h.languages else 0
        options |= h.model_args or {}
        self.net = VARIANTS[h.variant](h.n_symbols, mels=mel_spec(h.mel).n_mels, **options)
        if h.speaker_steps and self.net.speakers is None:
            raise UserError(f"speaker_steps={h.speaker_steps} needs speakers to tune; give init, or 0")
        return self.net

    def configure_model(self) -> None:
        """Build the network; where there is an ``init``, with its weights."""
        fresh = self.net is None
        super().configure_model()
        if fresh and self.hparams.init is not None:
            self._start_from(self.hparams.init)

    def _start_from(self, path: str) -> None:
        meta, state = read_trained(path)
        if meta.get("format") != self.FORMAT:
            raise UserError(f"{path} holds no {self.NAME}; give the model.safetensors of its training as init")
        own = self.net.state_dict()
        table = state.pop("speakers.weight", torch.zeros(1, own["speakers.weight"].shape[1]))
        state["speakers.weight"] = table.mean(0, keepdim=True).repeat(len(own["speakers.weight"]), 1)
        wrong = [k for k, v in own.items() if k not in state or state[k].shape != v.shape]
        if wrong or len(state) != len(own):
            odd = wrong[0] if wrong else next(iter(set(state) - set(own)))
            raise UserError(
                f"{path} does not fit this model ({odd}); give the variant and model_args it was trained with"
            )
        self.net.load_state_dict(state)

    def told(self, batch: dict[str, Tensor]) -> tuple[dict[str, Any], Targets, dict[str, Tensor]]:
        """What the network is given of a batch, by its arguments' names, the targets, and the aligner's losses."""
        durations, found = self._durations(batch)
        by_phoneme = self.net.pitch_level == "phoneme"
        pitch = average_by_duration(batch["pitch"], durations) if by_phoneme else batch["pitch"].clamp(min=1.0)
        energy = None if self.net.energy is None else average_by_duration(batch["energy"], durations)
        told = {"ids": batch["ids"], "text_lengths": batch["text_lengths"], "durations": durations, "pitch": pitch,
                "energy": energy, "reference": batch["mel"], "reference_lengths": batch["mel_lengths"]}  # fmt: skip
        told |= who_speaks(self.net, batch["speaker"], self.language_of)
        return told, Targets(batch["mel"], durations, pitch, energy), found

    def _durations(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Durations of the data or, without them, of the aligner inside, and that one's losses."""
        if "durations" in batch or self.net.aligner is None:
            return self.durations_of(batch), {}
        lengths = batch["text_lengths"], batch["mel_lengths"]
        check_lengths(*lengths)
        masks = length_mask(lengths[0], batch["ids"].shape[1]), length_mask(lengths[1], batch["mel"].shape[2])
        attn, scores = self.net.align(batch, priors(*lengths), *masks)
        durations = hard_durations(scores, *lengths)
        found = {"forward_sum": self.forward_sum(scores, *lengths)}
        ramp = min(max((self.global_step - self.hparams.binarise_from + 1) / 1000, 0.0), 1.0)
        if ramp > 0:
            found["binarisation"] = ramp * binarisation_loss(path_of(durations, attn.shape[1]).transpose(1, 2), attn)
        return durations, found

    def mel(self, batch: dict[str, Tensor]) -> Tensor:  # noqa: D102
        told, *_ = self.told(batch)
        return self.net(**told).mel

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of a batch, teacher-forced with its durations, pitch, and mostly its prosody."""
        told, targets, found = self.told(batch)
        return self.net.losses(self.net(**told, predicted=self._mixed(len(batch["ids"]))), targets) | found

    def _mixed(self, size: int) -> Tensor | None:
        """The items of a training batch that get predicted prosody, None for none."""
        if not self.training or self._trainer is None:
            return None
        if self.global_step < self.hparams.mix_from * self.trainer.estimated_stepping_batches:
            return None
        return torch.rand(size, device=self.device) < MIXED

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        """The losses, and the mel error where prosody is predicted, "mel_predicted"."""
        told, targets, found = self.told(batch)
        found |= self.net.losses(self.net(**told), targets)
        unheard = self.net(**{**told, "reference": None, "reference_lengths": None})
        found["mel_predicted"] = self.net.losses(unheard, targets)["mel"]
        self.log_dict({f"val/{k}": v for k, v in found.items()}, sync_dist=True, batch_size=len(batch["ids"]))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip gradients; while only speakers learn, drop those of everything else."""
        if self.global_step < self.hparams.speaker_steps:
            for name, weight in self.net.named_parameters():
                if not name.startswith("speakers."):
                    weight.grad = None
        super().on_before_optimizer_step(optimizer)


def who_speaks(net: DelightfulTTS, speaker: Tensor, language_of: Tensor) -> dict[str, Tensor]:
    """What a network is told of its speakers [batch]: their numbers and languages, where it knows several."""
    who = {} if net.speakers is None else {"speaker": speaker}
    return who if net.languages is None else who | {"language": language_of[speaker]}


class ForVoice(nn.Module):
    """A trained network as voice files need it: (ids, speaker, speed, pitch, energy) -> (log-mel, durations)."""

    def __init__(self, net: DelightfulTTS, language_of: Tensor):
        super().__init__()
        self.net = net
        self.register_buffer("language_of", language_of)

    def forward(
        self, ids: Tensor, speaker: Tensor | None, speed: Tensor, pitch: Tensor, energy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ids [1, text], speaker and factors [1] -> [1, mels, frames], int64 [1, text]; speaker None is the first."""
        who = who_speaks(self.net, ids.new_zeros(1) if speaker is None else speaker, self.language_of)
        out = self.net(ids, speed=speed, pitch_factor=pitch, energy_factor=energy, **who)
        return out.mel, out.durations


def load_trained(path: str | Path) -> tuple[DelightfulTTS, dict[str, Any]]:
    """``load_module`` without the training: (network in eval mode, what is known about it)."""
    module, about = load_module(path, DelightfulTTSTraining)
    return module.net, about


def load_for_voice(path: str | Path) -> tuple[ForVoice, dict[str, Any]]:
    """A trained network in the form that voices are made of: what ``vitalk speak`` and ``vitalk export`` ask for."""
    module, about = load_module(path, DelightfulTTSTraining)
    return ForVoice(module.net, module.language_of).eval(), about
