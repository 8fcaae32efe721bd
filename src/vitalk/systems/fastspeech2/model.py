"""The acoustic model: symbols to spectrogram in parallel."""

from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import FFTStack, fitting, masked_mean, symbol_mask
from vitalk.speech.acoustic.postnet import PostNet
from vitalk.speech.acoustic.regulator import Rounding, frames_from_logs, regulate, timed
from vitalk.speech.acoustic.speakers import vectors_of
from vitalk.speech.acoustic.variance import Spread, Variance, VariancePredictor, scale_gradient

from .pitch import WaveletPitch, WaveletPrediction

F0_SPREAD = Spread(5.2, 0.3, 60.0, 800.0, log=True)  # log Hz; until a corpus is measured
ENERGY_SPREAD = Spread(0.0, 1.0, 0.0, 300.0)

Factor = float | Tensor


@dataclass(frozen=True)
class Encoding:
    """Sizes of a stack of blocks; the fields are arguments of ``FFTStack``."""

    depth: int = 4
    heads: int = 2
    hidden: int = 1024
    kernels: tuple[int, int] = (9, 1)
    dropout: float = 0.1


@dataclass(frozen=True)
class Predictor:
    """Sizes of a variance predictor; the fields are arguments of ``VariancePredictor``, hidden None is the width."""

    layers: int = 2
    kernel: int = 3
    hidden: int | None = None
    dropout: float = 0.5

    def __call__(self, dim: int, out: int) -> VariancePredictor:
        """The predictor for a width and a number of outputs."""
        return VariancePredictor(dim, self.hidden or dim, out, self.layers, self.kernel, self.dropout)


@dataclass
class Output:
    """What a pass gives. Padding is zero everywhere; "time" is text or frames, as the quantity's level says.

    mel: log-mel [batch, mels, frames], after the post-net where there is one; None where it was not asked for.
    mel_coarse: before the post-net, else None. mel_lengths: frames, int64 [batch].
    log_durations: predicted log(frames + 1) [batch, text]. durations: frames used, int64 [batch, text].
    pitch: F0 used, in Hz [batch, time]. pitch_prediction: in learned units [batch, time], or ``WaveletPrediction``.
    energy: used, in its own unit [batch, time]. energy_prediction: in learned units [batch, time].
    hidden: what the decoder gets, [batch, frames, dim].
    text_mask [batch, text], frame_mask [batch, frames]: True where there is something.
    """

    mel: Tensor | None
    mel_coarse: Tensor | None
    mel_lengths: Tensor
    log_durations: Tensor
    durations: Tensor
    pitch: Tensor
    pitch_prediction: Tensor | WaveletPrediction
    energy: Tensor
    energy_prediction: Tensor
    hidden: Tensor
    text_mask: Tensor
    frame_mask: Tensor


@dataclass
class Targets:
    """What ``FastSpeech2.losses`` compares with; padding may hold anything.

    mel [batch, mels, frames]. durations: frames [batch, text]. pitch: Hz [batch, time], on a logarithmic scale
    without unvoiced gaps. energy [batch, time].
    Wavelet pitch has instead of ``pitch`` the spectrogram [batch, frames, 10], voiced [batch, frames], and
    pitch_mean, pitch_std of log F0, [batch] (``vitalk.speech.wavelet.pitch_spectrogram`` makes them).
    """

    mel: Tensor
    durations: Tensor
    energy: Tensor
    pitch: Tensor | None = None
    spectrogram: Tensor | None = None
    voiced: Tensor | None = None
    pitch_mean: Tensor | None = None
    pitch_std: Tensor | None = None


class FastSpeech2(nn.Module):
    """FastSpeech 2 (arXiv 2006.04558): encoder, variance adaptor, length regulator, mel decoder.

    n_symbols: of the text, padding included. mels: bands. dim: width of everything.
    encoder, decoder: sizes of the two stacks; predictor: of the duration predictor and of the others too, where
    ``variance_predictor`` does not say otherwise. Recipes may give their fields as dicts.
    pitch: "cwt", every frame by way of the wavelet spectrogram (paper v8); "frame", every frame directly (paper v1);
    "phoneme", the average over each symbol. energy: "frame" (paper) or "phoneme".
    f0_spread, energy_spread: of the corpus; see ``Spread.of``. embedding, bins: of pitch and energy, see ``Variance``.
    postnet: a Tacotron 2 post-net behind the decoder. speakers: number of voices, 0 for one alone. condition: width
    of a vector from outside, such as of a speaker encoder, 0 for none; voice and vector are added to the encoding.
    predictor_gradient: of the predictors' losses into the encoder; 1 as in the paper, the first author's later
    release has 0.1. rounding: of durations, see ``whole_frames``.
    """

    def __init__(
        self,
        n_symbols: int,
        mels: int = 80,
        dim: int = 256,
        encoder: Encoding | dict = Encoding(),
        decoder: Encoding | dict = Encoding(),
        predictor: Predictor | dict = Predictor(),
        variance_predictor: Predictor | dict | None = None,
        pitch: Literal["cwt", "frame", "phoneme"] = "cwt",
        energy: Literal["frame", "phoneme"] = "frame",
        f0_spread: Spread = F0_SPREAD,
        energy_spread: Spread = ENERGY_SPREAD,
        embedding: Literal["bins", "curve"] = "bins",
        bins: int = 256,
        postnet: bool = False,
        speakers: int = 0,
        condition: int = 0,
        predictor_gradient: float = 1.0,
        rounding: Rounding = "each",
    ):
        super().__init__()
        if pitch not in ("cwt", "frame", "phoneme") or energy not in ("frame", "phoneme"):
            raise UserError(
                f'pitch "{pitch}" and energy "{energy}": pitch is cwt, frame or phoneme, energy the latter two'
            )
        self.pitch_level = "phoneme" if pitch == "phoneme" else "frame"
        self.energy_level, self.predictor_gradient, self.rounding = energy, predictor_gradient, rounding
        predictor = _sizes(Predictor, predictor)
        make = predictor if variance_predictor is None else _sizes(Predictor, variance_predictor)
        self.symbols = nn.Embedding(n_symbols, dim)
        self.encoder, self.decoder = (FFTStack(dim=dim, **vars(_sizes(Encoding, s))) for s in (encoder, decoder))
        self.duration = predictor(dim, 1)
        told = {"bins": bins, "predictor": make, "gradient": predictor_gradient}
        self.pitch: Variance | WaveletPitch = (
            WaveletPitch(dim, f0_spread, **told) if pitch == "cwt" else Variance(dim, f0_spread, embedding, **told)
        )
        self.energy = Variance(dim, energy_spread, embedding, **told)
        self.head = nn.Linear(dim, mels)
        self.postnet = PostNet(mels) if postnet else None
        self.speakers = nn.Embedding(speakers, dim) if speakers else None
        self.condition = nn.Linear(condition, dim) if condition else None

    def forward(
        self,
        ids: Tensor,
        text_lengths: Tensor | None = None,
        durations: Tensor | None = None,
        pitch: Tensor | None = None,
        energy: Tensor | None = None,
        speaker: Tensor | None = None,
        condition: Tensor | None = None,
        speed: Factor = 1.0,
        pitch_factor: Factor = 1.0,
        energy_factor: Factor = 1.0,
        mel: bool = True,
    ) -> Output:
        """Symbols ids [batch, text] and their lengths [batch] (all of the width without them) -> ``Output``.

        durations [batch, text] in frames, pitch in Hz and energy [batch, text or frames]: used in place of the
        predictions, as in training. speaker: ids [batch]. condition: vectors [batch, condition].
        speed, pitch_factor, energy_factor: multiply the tempo, F0 in Hz and the energy, whether predicted or given;
        numbers, or tensors that fit [batch, time]. mel: False leaves the decoder out.
        Raises UserError for empty text and for arguments whose shapes or whose presence do not fit the model.
        """
        hidden, mask = self.encode(ids, text_lengths, speaker, condition)
        output = self.adapt(hidden, mask, durations, pitch, energy, speed, pitch_factor, energy_factor)
        if mel:
            output.mel, output.mel_coarse = self.decode(output)
        return output

    def encode(
        self,
        ids: Tensor,
        text_lengths: Tensor | None = None,
        speaker: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Symbols -> hidden sequence [batch, text, dim] and its mask, None where nothing is padding."""
        mask = symbol_mask(ids, text_lengths)
        hidden = self.encoder(self.symbols(ids), mask)
        for name, part, given in (("speaker", self.speakers, speaker), ("condition", self.condition, condition)):
            if (vectors := vectors_of(name, part, given)) is not None:
                hidden = hidden + vectors[:, None]
        return hidden, mask

    def adapt(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        durations: Tensor | None = None,
        pitch: Tensor | None = None,
        energy: Tensor | None = None,
        speed: Factor = 1.0,
        pitch_factor: Factor = 1.0,
        energy_factor: Factor = 1.0,
    ) -> Output:
        """The variance adaptor: hidden [batch, text, dim] -> ``Output`` without spectrogram."""
        logs = self.duration(scale_gradient(hidden, self.predictor_gradient), mask)[..., 0].float()
        if durations is None:
            durations = frames_from_logs(logs, mask, speed, self.rounding)
        else:
            durations = timed(fitting("durations", durations, hidden), mask, speed, self.rounding)
        told = {"pitch": (self.pitch, pitch, pitch_factor), "energy": (self.energy, energy, energy_factor)}
        levels = {"pitch": self.pitch_level, "energy": self.energy_level}
        found: dict[str, tuple] = {}

        def tell(level: str, x: Tensor, mask: Tensor | None) -> Tensor:
            for name, (variance, given, factor) in told.items():
                if levels[name] == level:
                    given = None if given is None else fitting(name, given, x)
                    embedded, *found[name] = variance(x, mask, given, factor)
                    x = x + embedded
            return x

        expanded, frame_mask = regulate(tell("phoneme", hidden, mask), durations)
        expanded = tell("frame", expanded, _padding(frame_mask))
        text_mask = durations >= 0 if mask is None else mask
        return Output(
            None, None, durations.sum(1), logs, durations, found["pitch"][1], found["pitch"][0], found["energy"][1],
            found["energy"][0], expanded, text_mask, frame_mask,
        )  # fmt: skip

    def decode(self, output: Output) -> tuple[Tensor, Tensor | None]:
        """What the adaptor made -> log-mel [batch, mels, frames], and that before the post-net where there is one."""
        mask = _padding(output.frame_mask)
        mel = self.head(self.decoder(output.hidden, mask)).transpose(1, 2)
        mel = mel if mask is None else mel.masked_fill(~mask[:, None], 0.0)
        if self.postnet is None:
            return mel, None
        refined = self.postnet(mel, mask)
        return refined if mask is None else refined.masked_fill(~mask[:, None], 0.0), mel

    def losses(self, output: Output, targets: Targets) -> dict[str, Tensor]:
        """The paper's losses, each a mean over what is no padding; training adds them up.

        mel (and mel_coarse): L1. duration: squared error of log(frames + 1). energy, pitch: squared error in learned
        units; wavelet pitch: of spectrogram, mean and std, and the cross-entropy of voicing.
        Raises UserError where a spectrogram is not as long as the durations say.
        """
        text, frames = output.text_mask, output.frame_mask
        if output.mel.shape != targets.mel.shape:
            raise UserError(
                f"a mel of shape {list(targets.mel.shape)} does not fit the durations, which make "
                f"{list(output.mel.shape)}; crop it to their sum"
            )
        found = {"mel": masked_mean((output.mel - targets.mel).abs(), frames[:, None])}
        if output.mel_coarse is not None:
            found["mel_coarse"] = masked_mean((output.mel_coarse - targets.mel).abs(), frames[:, None])
        found["duration"] = masked_mean((output.log_durations - targets.durations.float().log1p()).square(), text)
        level = {"phoneme": text, "frame": frames}
        energy = output.energy_prediction - self.energy.scale.normalise(targets.energy)
        found["energy"] = masked_mean(energy.square(), level[self.energy_level])
        if isinstance(self.pitch, WaveletPitch):
            return found | _wavelet_losses(output.pitch_prediction, targets, frames)
        pitch = output.pitch_prediction - self.pitch.scale.normalise(targets.pitch)
        return found | {"pitch": masked_mean(pitch.square(), level[self.pitch_level])}


def _wavelet_losses(prediction: WaveletPrediction, targets: Targets, frames: Tensor) -> dict[str, Tensor]:
    voiced = F.binary_cross_entropy_with_logits(prediction.voiced, targets.voiced.float(), reduction="none")
    return {
        "spectrogram": masked_mean((prediction.spectrogram - targets.spectrogram).square(), frames[..., None]),
        "voiced": masked_mean(voiced, frames),
        "pitch_mean": F.mse_loss(prediction.mean, targets.pitch_mean),
        "pitch_std": F.mse_loss(prediction.std, targets.pitch_std),
    }


def _padding(mask: Tensor) -> Tensor | None:
    """A mask of frames, or None where it hides nothing: an item alone is as long as its batch."""
    return None if len(mask) == 1 else mask


def _sizes(kind: type, given: Any) -> Any:
    return kind(**given) if isinstance(given, dict) else given
