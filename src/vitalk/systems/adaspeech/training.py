"""Training AdaSpeech with Lightning, on the batches of ``vitalk.speech.features.Speech``: the two stages of sources."""

import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitalk.files import replacing
from vitalk.speech.acoustic.adapting import voice_files
from vitalk.speech.acoustic.training import ForVoice, load_module
from vitalk.speech.acoustic.variance import Spread
from vitalk.speech.mel import mel_spec
from vitalk.systems.fastspeech2.model import Targets
from vitalk.systems.fastspeech2.training import FastSpeech2Training

from .model import AdaSpeech
from .variants import adaspeech, adaspeech_small, adaspeech_tuanh
from .voices import Adapter, fold, reference_of

VARIANTS: dict[str, Callable[..., AdaSpeech]] = {
    "paper": adaspeech,
    "tuanh": adaspeech_tuanh,
    "small": adaspeech_small,
}
HEARD = 8  # recordings of a speaker among which the reference is chosen
ALIGNER = "aligner.safetensors"  # in the run folder: adaptation asks the same one for durations


class AdaSpeechTraining(FastSpeech2Training):
    """Trains AdaSpeech on many speakers (arXiv 2103.00993, sections 2 and 3.1).

    The losses are FastSpeech 2's and, from the step ``predictor_start`` on, "latents", of the phoneme predictor; until
    then it weighs nothing. The decoder is given what the encoders make of the target itself. Validation also speaks
    with the predicted latents, as inference does: "spoken" is the mel's L1 then, and the best checkpoint that with the
    least of it, since a model is of no use before its predictor has learnt.

    variant: "paper", "tuanh" or "small". predictor_start: 60,000 of 100,000 steps in the paper.
    n_symbols, n_speakers, and options, such as model_args, mel, lr, schedule: see ``FastSpeech2Training``.

    Raises UserError for data without durations and for a loss that is not finite.
    """

    MONITOR = "val/spoken"
    FORMAT, NAME = "vitalk adaspeech", "AdaSpeech"

    def __init__(
        self,
        n_symbols: int,
        n_speakers: int = 1,
        variant: Literal["paper", "tuanh", "small"] = "paper",
        predictor_start: int = 60_000,
        **options: Any,
    ):
        super().__init__(n_symbols, n_speakers, **options)

    def build(self, f0: Spread, energy: Spread) -> nn.Module:
        """Make the network for a corpus whose log F0 and energy are spread so."""
        h = self.hparams
        options = {"f0_spread": f0, "energy_spread": energy, **(h.model_args or {})}
        self.net = VARIANTS[h.variant](h.n_symbols, mels=mel_spec(h.mel).n_mels, speakers=h.n_speakers, **options)
        return self.net

    def told(self, batch: dict[str, Tensor]) -> tuple[dict[str, Any], Targets]:
        """What the network is given of a batch, by the names of its arguments, and the targets."""
        told, targets = super().told(batch)
        heard = self.net.listen(batch["mel"], targets.durations, batch["text_lengths"])
        return {**told, **heard, "speaker": batch["speaker"]}, targets

    def weigh(self, losses: dict[str, Tensor]) -> Tensor:
        """The sum of the losses, each by its weight; the phoneme predictor's counts from its step on."""
        if "latents" in losses and self.global_step < self.hparams.predictor_start:
            # Times 0 and not left out, so that every process has a gradient for every weight.
            losses = {**losses, "latents": 0.0 * losses["latents"]}
        return super().weigh(losses)

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:  # noqa: D102
        told, targets = self.told(batch)
        found = self.net.losses(self.net(**told), targets)
        spoken = found if told["latents"] is None else self.net.losses(self.net(**{**told, "latents": None}), targets)
        named = {f"val/{name}": value for name, value in (found | {"spoken": spoken["mel"]}).items()}
        self.log_dict(named, sync_dist=True, batch_size=len(batch["ids"]))

    def save_weights(self, path: Path, data: Any) -> None:
        """As every acoustic model, with a reference for every speaker, and beside it the data's aligner."""
        self.hear(data)
        super().save_weights(path, data)
        if data.hparams.aligner is not None:
            with replacing(Path(path).with_name(ALIGNER)) as partial:
                shutil.copyfile(data.hparams.aligner, partial)

    def hear(self, data: Any) -> None:
        """Choose the utterance vectors that the speakers of the data speak with."""
        clips = defaultdict(list)
        for clip in (*data.train, *data.test):
            clips[clip.speaker].append(clip)
        training = self.net.training
        self.net.eval()
        for number, speaker in enumerate(data.speakers):
            mels = [torch.from_numpy(data.cache.fetch(clip)["mel"]).float() for clip in clips[speaker][:HEARD]]
            if mels:
                self.net.references[number] = reference_of(self.net, mels)
        self.net.train(training)


def load_for_voice(path: str | Path) -> tuple[ForVoice, dict[str, Any]]:
    """(folded network as voices need it, what is known about it): its own speakers and those of ``voices`` beside it.

    Every voices/NAME.safetensors of the run folder is a speaker NAME. Raises UserError for files that are no voices of
    this model, and for a name that it has already.
    """
    module, about = load_module(path, AdaSpeechTraining)
    adapters = [Adapter.load(file) for file in voice_files(Path(path), about["speakers"])]
    about["speakers"] = [*about["speakers"], *(adapter.name for adapter in adapters)]
    return ForVoice(fold(module.net, adapters), alone=False), about
