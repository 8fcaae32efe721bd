"""The acoustic model: symbols to spectrogram in parallel, with prosody heard or predicted at two levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import fitting, length_mask, masked, masked_mean, symbol_mask
from vitalk.speech.acoustic.regulator import Rounding, frames_from_logs, regulate, timed
from vitalk.speech.acoustic.speakers import vectors_of
from vitalk.speech.acoustic.ssim import mean_ssim
from vitalk.speech.acoustic.variance import Spread, Variance, scale_gradient
from vitalk.speech.align.aligner import Aligner

from .conformer import Blocks, Conformer
from .prosody import PhonemeProsody, Predictor, Reference, UtteranceProsody, unit

F0_SPREAD = Spread(5.2, 0.3, 60.0, 800.0, log=True)  # log Hz; until a corpus is measured
ENERGY_SPREAD = Spread(0.0, 1.0, 0.0, 300.0)
LEVELS = ("utterance", "phoneme")

Factor = float | Tensor


@dataclass
class Output:
    """What a pass gives. Padding is zero everywhere; "time" is text or frames, as the pitch's level says.

    mel: log-mel [batch, mels, frames]; mel_lengths: int64 [batch]. between: the same of every block but the last,
    where the model has heads for them. log_durations: predicted log(frames + 1) [batch, text]; durations: frames
    used, int64 [batch, text]. pitch: F0 used, Hz [batch, time]; pitch_prediction: in learned units. energy,
    energy_prediction [batch, text]: where the model predicts it.
    prosody: by level, the vectors heard (None without a recording) and predicted, at mean 0 and deviation 1 each:
    [batch, dim] of the utterance, [batch, text, dim] of phonemes.
    text_mask [batch, text], frame_mask [batch, frames]: True where there is something.
    """

    mel: Tensor
    mel_lengths: Tensor
    between: list[Tensor]
    log_durations: Tensor
    durations: Tensor
    pitch: Tensor
    pitch_prediction: Tensor
    energy: Tensor | None
    energy_prediction: Tensor | None
    prosody: dict[str, tuple[Tensor | None, Tensor]]
    text_mask: Tensor
    frame_mask: Tensor


@dataclass
class Targets:
    """What ``DelightfulTTS.losses`` compares with; padding may hold anything.

    mel [batch, mels, frames]. durations: frames [batch, text]. pitch: Hz [batch, time], without unvoiced gaps.
    energy [batch, text]: where the model predicts it.
    """

    mel: Tensor
    durations: Tensor
    pitch: Tensor
    energy: Tensor | None = None


class Level(nn.Module):
    """One level of prosody: what hears it, what predicts it, and the way back to the model's width."""

    def __init__(self, reference: nn.Module, predictor: nn.Module, width: int, dim: int):
        super().__init__()
        self.reference, self.predictor, self.out = reference, predictor, nn.Linear(width, dim)

    def forward(self, heard: Tensor | None, predicted: Tensor, chosen: Tensor | None) -> Tensor:
        """Vectors heard or, without them or where ``chosen`` [batch] says so, predicted -> what is added to states."""
        used = predicted
        if heard is not None:
            used = heard if chosen is None else torch.where(chosen.view(-1, *[1] * (heard.ndim - 1)), predicted, heard)
        return self.out(used)


class DelightfulTTS(nn.Module):
    """DelightfulTTS' acoustic model (arXiv 2110.12612): Conformer, two levels of prosody, pitch, duration, Conformer.

    n_symbols: of the text, padding included. mels: bands. dim: width of everything.
    encoder, decoder: sizes of the stacks; reference: of what hears recordings; predictor: of durations, pitch and
    energy; prosody_predictor: of the prosody vectors. Recipes may give their fields as dicts.
    prosody: the levels that there are. utterance_dim, phoneme_dim: widths of their vectors; the phonemes' must stay
    narrow, or they carry the mel itself. tokens: style tokens. wrapped: the phonemes' attention, see
    ``PhonemeProsody``. chained: phonemes' prosody builds on states that hold the utterance's. pitch: predicted for
    each "phoneme" or "frame". f0_spread, energy_spread: of the corpus.
    embedding, bins: of pitch and energy, see ``Variance``. energy: predict that too, for each phoneme.
    speakers, languages: numbers of them, 0 for one alone. conditioning: "add", to the encoding, or "gate", in every
    block (``GatedCondition``) with speaker_dim + language_dim numbers, whose speaker part is brought to length 1 by
    unit_speaker. duration_gradient: of the durations' loss into the encoder, as a factor. between: heads and losses
    for all blocks of the decoder. aligner: one inside, that learns durations along (``align``).
    """

    def __init__(
        self,
        n_symbols: int,
        mels: int = 80,
        dim: int = 384,
        encoder: Blocks | dict = Blocks(),
        decoder: Blocks | dict = Blocks(kernel=11),
        reference: Reference | dict = Reference(),
        predictor: Predictor | dict = Predictor(),
        prosody_predictor: Predictor | dict = Predictor(dropout=0.1),
        prosody: Sequence[str] = LEVELS,
        utterance_dim: int = 256,
        phoneme_dim: int = 4,
        tokens: int = 32,
        wrapped: bool = False,
        chained: bool = True,
        pitch: Literal["phoneme", "frame"] = "phoneme",
        f0_spread: Spread = F0_SPREAD,
        energy_spread: Spread = ENERGY_SPREAD,
        embedding: Literal["bins", "curve"] = "bins",
        bins: int = 256,
        energy: bool = False,
        speakers: int = 0,
        languages: int = 0,
        conditioning: Literal["add", "gate"] = "add",
        speaker_dim: int = 384,
        language_dim: int = 0,
        unit_speaker: bool = False,
        duration_gradient: float = 1.0,
        between: bool = True,
        aligner: bool = False,
        rounding: Rounding = "each",
    ):
        super().__init__()
        _check(prosody, pitch, conditioning, languages, language_dim)
        encoder, decoder = _sizes(Blocks, encoder), _sizes(Blocks, decoder)
        reference, predictor = _sizes(Reference, reference), _sizes(Predictor, predictor)
        expect = _sizes(Predictor, prosody_predictor)
        self.pitch_level, self.duration_gradient, self.rounding = pitch, duration_gradient, rounding
        self.gated, self.unit_speaker, self.chained = conditioning == "gate", unit_speaker, chained
        widths = (speaker_dim, language_dim) if self.gated else (dim, dim)
        self.speakers = nn.Embedding(speakers, widths[0]) if speakers else None
        self.languages = nn.Embedding(languages, widths[1]) if languages else None
        width = sum(table.embedding_dim for table in (self.speakers, self.languages) if table is not None)
        width = width if self.gated else 0
        self.symbols = nn.Embedding(n_symbols, dim)
        self.encoder, self.decoder = Conformer(dim, encoder, width), Conformer(dim, decoder, width)
        hears = {
            "utterance": lambda: UtteranceProsody(mels, dim, utterance_dim, tokens, reference, encoder.dropout),
            "phoneme": lambda: PhonemeProsody(
                mels, dim, encoder.heads, phoneme_dim, reference, encoder.dropout, wrapped
            ),
        }
        sizes = {"utterance": utterance_dim, "phoneme": phoneme_dim}
        self.prosody = nn.ModuleDict(
            {n: Level(hears[n](), expect(dim, sizes[n]), sizes[n], dim) for n in LEVELS if n in prosody}
        )
        told: dict[str, Any] = {"bins": bins, "predictor": predictor}
        self.duration = predictor(dim, 1)
        self.pitch = Variance(dim, f0_spread, embedding, **told)
        self.energy = Variance(dim, energy_spread, embedding, **told) if energy else None
        self.head = nn.Linear(dim, mels)
        self.between = nn.ModuleList(nn.Linear(dim, mels) for _ in range(decoder.depth - 1 if between else 0))
        self.aligner = Aligner(dim, mels) if aligner else None

    def forward(
        self,
        ids: Tensor,
        text_lengths: Tensor | None = None,
        durations: Tensor | None = None,
        pitch: Tensor | None = None,
        energy: Tensor | None = None,
        speaker: Tensor | None = None,
        language: Tensor | None = None,
        reference: Tensor | None = None,
        reference_lengths: Tensor | None = None,
        predicted: Tensor | None = None,
        speed: Factor = 1.0,
        pitch_factor: Factor = 1.0,
        energy_factor: Factor = 1.0,
    ) -> Output:
        """Symbols ids [batch, text] and their lengths [batch] (all of the width without them) -> ``Output``.

        durations [batch, text] in frames, pitch in Hz [batch, text or frames], energy [batch, text]: used in place of
        predictions, as in training. speaker, language: ids [batch].
        reference: log-mel [batch, mels, frames] and its lengths [batch]: the utterance's prosody is heard in it, and,
        where durations are given, so that it is a recording of this very text, the phonemes' too. Without it both
        are predicted. predicted: bool [batch], the items that get predicted prosody nevertheless.
        speed, pitch_factor: multiply tempo and F0 in Hz. energy_factor: multiplies the energy or, in models
        without, all magnitudes of the spectrogram. Numbers, or tensors that fit [batch, time].
        Raises UserError for empty text and for arguments whose shapes, values or presence do not fit the model.
        """
        hidden, mask, condition = self.encode(ids, text_lengths, speaker, language)
        hidden, prosody = self.tell_prosody(hidden, mask, durations, reference, reference_lengths, predicted)
        logs = self.duration(scale_gradient(hidden, self.duration_gradient), mask)[..., 0].float()
        if durations is None:
            durations = frames_from_logs(logs, mask, speed, self.rounding)
        else:
            durations = timed(fitting("durations", durations, hidden), mask, speed, self.rounding)
        heard: Tensor | float = 0.0
        loudness = level = None
        if self.energy is not None:
            given = None if energy is None else fitting("energy", energy, hidden)
            heard, loudness, level = self.energy(hidden, mask, given, energy_factor)
        by_phoneme = self.pitch_level == "phoneme"
        if by_phoneme:
            embedded, f0, hertz = self.pitch(hidden, mask, _given("pitch", pitch, hidden), pitch_factor)
            hidden = hidden + embedded
        hidden, frame_mask = regulate(hidden + heard, durations)
        inside = None if len(frame_mask) == 1 else frame_mask  # an item alone is as long as its batch
        if not by_phoneme:
            embedded, f0, hertz = self.pitch(hidden, inside, _given("pitch", pitch, hidden), pitch_factor)
            hidden = hidden + embedded
        mel, between = self.decode(hidden, inside, condition)
        if self.energy is None and not (isinstance(energy_factor, float) and energy_factor == 1):
            mel = _louder(mel, energy_factor, inside)
        text_mask = durations >= 0 if mask is None else mask
        return Output(
            mel, durations.sum(1), between, logs, durations, hertz, f0, level, loudness, prosody, text_mask, frame_mask
        )

    def encode(
        self, ids: Tensor, text_lengths: Tensor | None = None, speaker: Tensor | None = None,
        language: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        """Symbols -> states [batch, text, dim], their mask, and the condition [batch, width] of gated models."""
        mask = symbol_mask(ids, text_lengths)
        told = [vectors_of("speaker", self.speakers, speaker), vectors_of("language", self.languages, language)]
        if told[0] is not None and self.unit_speaker:
            told[0] = F.normalize(told[0], dim=-1)
        vectors = [vector for vector in told if vector is not None]
        x = masked(self.symbols(ids), mask)
        if self.gated:
            condition = torch.cat(vectors, -1) if vectors else None
            return self.encoder(x, mask, condition), mask, condition
        hidden = self.encoder(x, mask)
        for vector in vectors:
            hidden = masked(hidden + vector[:, None], mask)
        return hidden, mask, None

    def tell_prosody(
        self, hidden: Tensor, mask: Tensor | None, durations: Tensor | None = None, reference: Tensor | None = None,
        reference_lengths: Tensor | None = None, predicted: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, tuple[Tensor | None, Tensor]]]:  # fmt: skip
        """States [batch, text, dim] with the prosody added, and ``Output.prosody``; arguments as of ``forward``."""
        frames = None if reference_lengths is None else length_mask(reference_lengths, reference.shape[2])
        found: dict[str, tuple[Tensor | None, Tensor]] = {}
        plain = shown = hidden
        for name, level in self.prosody.items():
            seen = hidden if self.chained else plain
            # What was heard of the utterance helps to predict the phonemes', but does not learn from that.
            prediction, heard = level.predictor(shown, mask), None
            if name == "utterance":
                count = hidden.shape[1] if mask is None else mask.sum(1, keepdim=True)
                prediction = prediction.sum(1) / count
                heard = None if reference is None else level.reference(reference, frames)
            elif reference is not None and durations is not None:
                heard = level.reference(seen, mask, reference, frames, fitting("durations", durations, hidden))
            prediction, heard = unit(prediction), None if heard is None else unit(heard)
            added = level(heard, prediction, predicted)
            added = masked(added if added.ndim == 3 else added[:, None].expand_as(hidden), mask)
            hidden = hidden + added
            shown = plain + added.detach() if self.chained else plain
            found[name] = (heard, prediction)
        return hidden, found

    def decode(self, hidden: Tensor, mask: Tensor | None, condition: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Frames [batch, frames, dim] -> log-mel [batch, mels, frames], and those of the blocks before the last."""
        states = self.decoder.states(hidden, mask, condition)
        heads = [*self.between, self.head] if self.training else [self.head]
        mels = [masked(h(x), mask).transpose(1, 2) for h, x in zip(heads, states[-len(heads) :], strict=True)]
        return mels[-1], mels[:-1]

    def align(
        self, batch: dict[str, Tensor], prior: Tensor, text_mask: Tensor, mel_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the inner aligner makes of ids and mel of a batch: (attention, log-probabilities), see ``Aligner``."""
        return self.aligner(self.symbols(batch["ids"]), batch["mel"], text_mask, mel_mask, prior)

    def losses(self, output: Output, targets: Targets) -> dict[str, Tensor]:
        """The losses, each a mean over what is no padding.

        mel: L1. ssim: 1 - structural similarity, both mels scaled so that the target goes from 0 to 1. between: mean
        over the blocks before the last of the two together. duration: squared error of log(frames + 1); pitch,
        energy: in learned units. utterance, phoneme: L1 of predicted prosody to what was heard, through which no
        gradient reaches what hears.
        Raises UserError where a spectrogram is not as long as the durations say.
        """
        text, frames = output.text_mask, output.frame_mask
        if output.mel.shape != targets.mel.shape:
            raise UserError(
                f"a mel of shape {list(targets.mel.shape)} does not fit the durations, which make "
                f"{list(output.mel.shape)}; crop it to their sum"
            )
        found = dict(zip(("mel", "ssim"), _mel_losses(output.mel, targets.mel, frames), strict=True))
        if output.between:
            found["between"] = torch.stack(
                [sum(_mel_losses(mel, targets.mel, frames)) for mel in output.between]
            ).mean()
        found["duration"] = masked_mean((output.log_durations - targets.durations.float().log1p()).square(), text)
        pitch = output.pitch_prediction - self.pitch.scale.normalise(targets.pitch)
        found["pitch"] = masked_mean(pitch.square(), text if self.pitch_level == "phoneme" else frames)
        if self.energy is not None:
            energy = output.energy_prediction - self.energy.scale.normalise(targets.energy)
            found["energy"] = masked_mean(energy.square(), text)
        for name, (heard, predicted) in output.prosody.items():
            if heard is not None:
                off = (predicted - heard.detach()).abs()
                found[name] = off.mean() if name == "utterance" else masked_mean(off, text[..., None])
        return found


def _mel_losses(mel: Tensor, target: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """(L1, 1 - structural similarity), the latter in the range of each target."""
    outside = ~frames[:, None]
    low = target.masked_fill(outside, torch.inf).amin((1, 2), keepdim=True)
    high = target.masked_fill(outside, -torch.inf).amax((1, 2), keepdim=True)
    a, b = (((x - low) / (high - low).clamp(min=1e-3)).float() for x in (mel, target))
    return masked_mean((mel - target).abs(), frames[:, None]), 1 - mean_ssim(a, b, frames).mean()


def _louder(mel: Tensor, factor: Factor, mask: Tensor | None) -> Tensor:
    """Log-mel [batch, mels, frames] whose magnitudes are multiplied; the padding stays zero."""
    shift = torch.as_tensor(factor, dtype=mel.dtype, device=mel.device).log()
    mel = mel + (shift[:, None] if shift.ndim == 2 else shift.view(-1, 1, 1))
    return mel if mask is None else mel.masked_fill(~mask[:, None], 0.0)


def _sizes(kind: type, given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def _given(name: str, given: Tensor | None, x: Tensor) -> Tensor | None:
    return None if given is None else fitting(name, given, x)


def _check(prosody: Sequence[str], pitch: str, conditioning: str, languages: int, language_dim: int) -> None:
    if unknown := [name for name in prosody if name not in LEVELS]:
        raise UserError(f'there is no prosody of level "{unknown[0]}"; choose from {", ".join(LEVELS)}')
    if pitch not in ("phoneme", "frame") or conditioning not in ("add", "gate"):
        raise UserError(
            f'pitch "{pitch}" and conditioning "{conditioning}": pitch is phoneme or frame, conditioning add or gate'
        )
    if conditioning == "gate" and languages and not language_dim:
        raise UserError(f"{languages} languages need a language_dim above 0 to be told by gates")
