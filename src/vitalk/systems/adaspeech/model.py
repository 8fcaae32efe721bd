"""The acoustic model: FastSpeech 2 that hears how a recording sounds, with a mel decoder that a voice conditions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import FFTStack, length_mask, masked
from vitalk.speech.acoustic.speakers import numbered
from vitalk.speech.acoustic.variance import scale_gradient
from vitalk.systems.fastspeech2.model import Encoding, Factor, FastSpeech2, Output, Predictor, Targets

from .conditional import ConditionalLayerNorm
from .encoders import UtteranceEncoder, phoneme_mel

LEVELS = ("utterance", "phoneme")


@dataclass
class AdaOutput(Output):
    """What a pass gives beside FastSpeech 2's.

    utterance: vectors used [batch, dim]. latents: of the phonemes, used [batch, text, latents], zero in the padding;
    latents_prediction: what is predicted of them. None where the model has no such level.
    """

    utterance: Tensor | None = None
    latents: Tensor | None = None
    latents_prediction: Tensor | None = None


class AdaSpeech(FastSpeech2):
    """AdaSpeech (arXiv 2103.00993): FastSpeech 2 with acoustic conditions and conditional layer norms.

    speakers: voices, 1 or more; each has a vector of width ``dim``, added to the text and told to the decoder's norms.
    levels: of the acoustic condition, "utterance" and "phoneme", or fewer (the paper's ablation). conditional: norms of
    the decoder; plain ones otherwise (the same). latents: width of what a phoneme's mel is squeezed into, so that it
    cannot be copied; phoneme: sizes of its encoder and of the predictor, or their fields as a dict.
    final_norm: "hidden", the ninth norm of the paper's count, behind the blocks; "mel", on the mel bands instead and
    always conditional, as in tuanh123789/AdaSpeech. predictor_hears_voice: the phoneme predictor is
    told who speaks; there it is not.
    languages: number of languages, each a vector added with the voice's, as there; 0 for one alone.
    options: the others of ``FastSpeech2``.
    references: buffer [speakers, dim], the utterance vectors that voices speak with where none is given.

    Raises UserError for sizes and levels that do not exist.
    """

    def __init__(
        self,
        n_symbols: int,
        mels: int = 80,
        dim: int = 256,
        decoder: Encoding | dict = Encoding(),
        speakers: int = 1,
        levels: Sequence[str] = LEVELS,
        conditional: bool = True,
        latents: int = 4,
        phoneme: Predictor | dict = Predictor(),
        final_norm: Literal["hidden", "mel"] = "hidden",
        predictor_hears_voice: bool = True,
        languages: int = 0,
        **options: Any,
    ):
        super().__init__(n_symbols, mels, dim, decoder=Encoding(depth=0), **options)  # ours takes its place
        if set(levels) - set(LEVELS) or final_norm not in ("hidden", "mel"):
            raise UserError(
                f"levels {list(levels)} and final norm {final_norm}: levels are {', '.join(LEVELS)}, the norm is "
                "hidden or mel"
            )
        if speakers < 1:
            raise UserError(f"{speakers} speakers cannot speak; give 1 or more")
        norm = partial(ConditionalLayerNorm, condition=dim) if conditional else nn.LayerNorm
        sizes = decoder if isinstance(decoder, dict) else vars(decoder)
        self.decoder = FFTStack(dim=dim, **sizes, norm=norm, final_norm=final_norm == "hidden")
        self.mel_norm = ConditionalLayerNorm(mels, dim) if final_norm == "mel" else None
        self.conditional, self.folded, self.predictor_hears_voice = conditional, False, predictor_hears_voice
        self.voices = nn.Embedding(speakers, dim)
        self.languages = nn.Embedding(languages, dim) if languages else None
        self.utterance = UtteranceEncoder(mels, dim) if "utterance" in levels else None
        self.register_buffer("references", torch.zeros(speakers, dim))
        make = Predictor(**phoneme) if isinstance(phoneme, dict) else phoneme
        self.phoneme = self.phoneme_predictor = self.phoneme_embedding = None
        if "phoneme" in levels:
            sized = Predictor(make.layers, make.kernel, make.hidden or dim, make.dropout)
            self.phoneme, self.phoneme_predictor = sized(mels, latents), sized(dim, latents)
            self.phoneme_embedding = nn.Linear(latents, dim)

    def forward(
        self,
        ids: Tensor,
        text_lengths: Tensor | None = None,
        durations: Tensor | None = None,
        pitch: Tensor | None = None,
        energy: Tensor | None = None,
        speaker: Tensor | None = None,
        language: Tensor | None = None,
        utterance: Tensor | None = None,
        latents: Tensor | None = None,
        speed: Factor = 1.0,
        pitch_factor: Factor = 1.0,
        energy_factor: Factor = 1.0,
    ) -> AdaOutput:
        """Symbols ids [batch, text] -> ``AdaOutput``; ``FastSpeech2.forward`` explains what is not named here.

        speaker, language: ids [batch]; one voice alone needs none. utterance: vectors [batch, dim] of recordings of the
        speakers, by default their ``references``. latents: of the phonemes [batch, text, latents], by default what is
        predicted. ``listen`` makes both of recordings, as training does of those that it shall give back.
        Raises UserError for empty text, for voices that there are not, and for arguments that do not fit the model.
        """
        speaker = self._known("speaker", self.voices, speaker, ids)
        voice = self.voices(speaker)
        hidden, mask = self.encode(ids, text_lengths)
        who = voice[:, None]
        if self.languages is not None or language is not None:
            who = who + self.languages(self._known("language", self.languages, language, ids))[:, None]
        if self.utterance is not None:
            utterance = self.references[speaker] if utterance is None else utterance
            hidden = hidden + utterance[:, None]
        elif utterance is not None:
            raise UserError("this model has no utterance level; leave the utterance's vector out")
        heard = hidden + who if self.predictor_hears_voice else hidden
        hidden, latents, prediction = self._add_latents(hidden + who, heard, mask, latents)
        output = self.adapt(hidden, mask, durations, pitch, energy, speed, pitch_factor, energy_factor)
        output = AdaOutput(**vars(output), utterance=utterance, latents=latents, latents_prediction=prediction)
        output.mel, output.mel_coarse = self.decode(output, speaker if self.folded else voice)
        return output

    def listen(self, mel: Tensor, durations: Tensor, text_lengths: Tensor | None = None) -> dict[str, Tensor | None]:
        """What ``forward`` may be told of recordings, by the names of its arguments: their utterance and latents.

        mel [batch, mels, frames], durations int64 [batch, text], zero in the padding. None for levels that there are
        not. Raises UserError where the durations do not sum to the frames.
        """
        found: dict[str, Tensor | None] = {"utterance": None, "latents": None}
        if self.utterance is not None:
            found["utterance"] = self.utterance(mel, durations.sum(1))
        if self.phoneme is not None:
            mask = None if text_lengths is None else length_mask(text_lengths, durations.shape[1])
            found["latents"] = self.phoneme(phoneme_mel(mel, durations), mask)
        return found

    def decode(self, output: Output, condition: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """``FastSpeech2.decode`` and the norms' condition: vectors [batch, dim], numbers [batch] if folded."""
        mask = None if len(output.frame_mask) == 1 else output.frame_mask
        mel = self.head(self.decoder(output.hidden, mask, condition if self.conditional else None))
        mel = mel if self.mel_norm is None else self.mel_norm(mel, condition)
        mel = masked(mel, mask).transpose(1, 2)
        if self.postnet is None:
            return mel, None
        refined = self.postnet(mel, mask)
        return refined if mask is None else refined.masked_fill(~mask[:, None], 0.0), mel

    def losses(self, output: AdaOutput, targets: Targets) -> dict[str, Tensor]:
        """FastSpeech 2's losses and, with the phoneme level, "latents": squared error of their prediction.

        What the encoder made is the predictor's target only, so that no gradient of it reaches the encoder.
        """
        found = super().losses(output, targets)
        if output.latents_prediction is not None:
            off = (output.latents_prediction - output.latents.detach()).float()
            found["latents"] = masked(off.square(), output.text_mask).sum() / (output.text_mask.sum() * off.shape[2])
        return found

    def _add_latents(
        self, hidden: Tensor, heard: Tensor, mask: Tensor | None, latents: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self.phoneme_predictor is None:
            if latents is not None:
                raise UserError("this model has no phoneme level; leave the latents out")
            return hidden, None, None
        prediction = self.phoneme_predictor(scale_gradient(heard, self.predictor_gradient), mask)
        latents = prediction if latents is None else latents
        if latents.shape != prediction.shape:
            raise UserError(f"latents of shape {list(latents.shape)} do not fit {list(prediction.shape)}")
        return hidden + self.phoneme_embedding(latents), latents, prediction

    def _known(self, name: str, table: nn.Embedding | None, given: Tensor | None, ids: Tensor) -> Tensor:
        """The numbers of speakers or languages, all of which the table must have."""
        if table is None:
            raise UserError(f"this model knows no {name}; leave it out")
        if given is None:
            if table.num_embeddings > 1:
                raise UserError(f"this model needs a {name}; give numbers below {table.num_embeddings}")
            return ids.new_zeros(len(ids))
        return numbered(name, given, table.num_embeddings)
