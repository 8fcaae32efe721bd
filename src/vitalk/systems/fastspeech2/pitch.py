"""Pitch of every frame by way of its wavelet spectrogram (FastSpeech 2, arXiv 2006.04558 v8, section 2.3)."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import softplus

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import masked
from vitalk.speech.acoustic.variance import BinEmbedding, Scale, Spread, scale_gradient
from vitalk.speech.wavelet import N_SCALES, f0_from_spectrogram


@dataclass
class WaveletPrediction:
    """What is predicted of a pitch curve.

    spectrogram: [batch, frames, 10]. voiced: logits [batch, frames]. mean, std: of log F0 in Hz, [batch].
    """

    spectrogram: Tensor
    voiced: Tensor
    mean: Tensor
    std: Tensor


class WaveletPitch(nn.Module):
    """Predicts the pitch spectrogram, voicing and the curve's mean and deviation; embeds the F0 that they make.

    dim: of the hidden sequence. spread: of log F0 in the corpus, ``log=True``; mean and deviation are predicted
    relative to it (ours, as the paper only says that they come from the time-averaged hidden sequence).
    predictor: makes the predictor for a width and a number of outputs. bins: log-spaced. gradient: see ``Variance``.
    """

    def __init__(
        self, dim: int, spread: Spread, predictor: Callable[[int, int], nn.Module], bins: int = 256,
        gradient: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        if not spread.log:
            raise UserError("wavelet pitch is of the logarithm of F0; measure the spread with log=True")
        self.scale, self.predictor, self.gradient = Scale(spread), predictor(dim, N_SCALES + 1), gradient
        self.statistics = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 2)
        )
        self.embedding = BinEmbedding(dim, spread, bins)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, target: Tensor | None = None, factor: float | Tensor = 1.0
    ) -> tuple[Tensor, WaveletPrediction, Tensor]:
        """x [batch, frames, dim] -> its embedding [batch, frames, dim], the prediction, F0 in Hz [batch, frames].

        target: F0 in Hz [batch, frames], 0 where unvoiced. F0 is the target, or else what the prediction says,
        times ``factor``.
        """
        prediction = self.predict(scale_gradient(x, self.gradient), mask)
        f0 = (self.f0(prediction, mask) if target is None else target.float()) * factor
        f0 = f0 if mask is None else f0.masked_fill(~mask, 0.0)
        return masked(self.embedding(f0), mask), prediction, f0

    def predict(self, x: Tensor, mask: Tensor | None = None) -> WaveletPrediction:
        """From the hidden sequence before pitch is added; averages over time leave padding out."""
        found = self.predictor(x, mask).float()
        mean = x.mean(1) if mask is None else masked(x, mask).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        centre, width = self.statistics(mean).float().unbind(-1)
        centre, width = centre * self.scale.std + self.scale.mean, softplus(width) * self.scale.std
        return WaveletPrediction(found[..., :N_SCALES], found[..., N_SCALES], centre, width)

    def f0(self, prediction: WaveletPrediction, mask: Tensor | None = None) -> Tensor:
        """F0 in Hz [batch, frames], 0 where the prediction is unvoiced."""
        f0 = f0_from_spectrogram(prediction.spectrogram, prediction.mean, prediction.std, mask)
        return f0.masked_fill(prediction.voiced <= 0, 0.0)
