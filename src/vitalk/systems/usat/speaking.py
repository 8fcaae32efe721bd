"""Trained models that speak: by name, with adapted voices, and as anybody whose recording is given."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.training import load_module
from vitalk.speech.audio import Audio
from vitalk.speech.features import framed
from vitalk.speech.reference import speaker_reference
from vitalk.speech.speaking import Chained, torch_voice, vocoder_for
from vitalk.speech.synthesizer import Prompt, refuse_beyond
from vitalk.speech.voice import Voice

from .model import Usat
from .training import ForVoice, UsatTraining, mean_voice
from .voices import adapted, voices_of


class UsatVoice(Voice):
    """A ``Voice`` that a recording may lend its sound: ``synthesize(text, Prompt(reference=audio))``.

    like: makes the plain voice that sounds like a recording.
    """

    def __init__(self, session: Any, about: dict[str, Any], like: Callable[[Audio], Voice]):
        super().__init__(session, about)
        self.like = like

    def synthesize(self, text: str, prompt: Prompt = Prompt()) -> Audio:
        """As every ``Synthesizer``; of the prompt, speaker or reference, speed, energy and lang are followed.

        The reference's text is not needed. Raises UserError for references that hold no second of speech.
        """
        if prompt.reference is None:
            return super().synthesize(text, prompt)
        follows = ("reference", "reference_text", "speed", "energy", "lang")
        refuse_beyond(prompt, self.name, follows)
        plain = replace(prompt, reference=None, reference_text=None)
        return self.like(prompt.reference).synthesize(text, plain)


class Voices(nn.Module):
    """The model's own speakers and adapted ones behind them, asked as a ``ForVoice``; numbers count through both."""

    def __init__(self, own: ForVoice, others: list[ForVoice]):
        super().__init__()
        self.own, self.others = own, nn.ModuleList(others)

    def forward(self, ids: Tensor, speaker: Tensor | None, *factors: Tensor) -> tuple[Tensor, Tensor]:
        """See ``ForVoice``."""
        number, known = 0 if speaker is None else int(speaker), len(self.own.net.voices)
        if number < known:
            return self.own(ids, None if known == 1 else speaker, *factors)
        return self.others[number - known](ids, None, *factors)


def reference_voice(net: Usat, reference: Audio) -> Tensor:
    """The vector [voice] of who speaks in a recording, of any rate.

    Raises UserError where there is less than a second of speech, or sound without a voice.
    """
    spec = net.spec
    samples = speaker_reference(reference, spec).samples
    return mean_voice(net, [torch.from_numpy(framed(samples, spec.frames(len(samples)), spec))])


def trained_voice(model: str | Path, vocoder: str | Path | None = None, device: str = "cpu") -> UsatVoice:
    """The voice of the model.safetensors of a training, with those that were adapted in voices/ beside it.

    vocoder: model.safetensors of one for the model's mels, None for Griffin-Lim; a model that makes waves needs none.
    device: of torch. Raises UserError for files that are no such model, for vocoders that do not fit or are not needed,
    and for adapted voices of another model.
    """
    module, about = load_module(model, UsatTraining)
    path, net = Path(model), module.net
    if not net.speaks_mel and vocoder is not None:
        raise UserError(f"{model} makes waveforms itself; leave the vocoder {vocoder} out")
    others = voices_of(net, path, about["speakers"])
    net.fold()
    generator, rate = vocoder_for(about["mel"], vocoder, model) if net.speaks_mel else (nn.Identity(), None)
    name = path.parent.name or "trained"

    def plain(acoustic: nn.Module, speakers: list[str]) -> Voice:
        return torch_voice(Chained(acoustic, generator), {**about, "speakers": speakers}, name, device, rate)

    def like(reference: Audio) -> Voice:
        return plain(ForVoice(net, reference_voice(net, reference)[None]), [])

    whole = Voices(ForVoice(net), [ForVoice(adapted(net, voice)) for voice in others])
    known = plain(whole, [*about["speakers"], *(voice.name for voice in others)])
    return UsatVoice(known.session, known.about, like)
