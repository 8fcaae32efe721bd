"""What the text leaves open: duration, pitch and energy, predicted and told (FastSpeech 2, arXiv 2006.04558)."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.pitch import bins as log_bins
from vitalk.speech.pitch import bucketize as log_bucketize

from .fft_block import masked


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x as it is, with gradients that are multiplied by ``factor``: 1 lets all through, 0 cuts."""
    if factor == 1 or not torch.is_grad_enabled():
        return x
    return x.detach() if factor == 0 else x.detach() + factor * (x - x.detach())


class VariancePredictor(nn.Module):
    """[convolution, ReLU, LayerNorm, dropout] x layers and a linear output: x [batch, time, dim] -> [batch, time, out].

    dim: of the input; hidden: of the layers; kernel: frames, odd. Padding is zeroed before every convolution, so
    an item gives the same alone and in a batch.
    """

    def __init__(
        self, dim: int = 256, hidden: int = 256, out: int = 1, layers: int = 2, kernel: int = 3, dropout: float = 0.5
    ):
        super().__init__()
        if kernel % 2 == 0:
            raise UserError(f"a kernel of {kernel} frames has no centre; choose an odd one")
        widths = [dim] + [hidden] * layers
        self.convs = nn.ModuleList(nn.Conv1d(a, b, kernel, padding=kernel // 2) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(layers))
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(hidden, out)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, time]: True where there is something; the output is zero elsewhere."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(masked(x, mask).transpose(1, 2)).relu().transpose(1, 2)
            x = self.dropout(norm(x))
        return masked(self.linear(x), mask)


@dataclass(frozen=True)
class Spread:
    """How a quantity is spread over a corpus.

    mean, std: of its values, or of their natural logarithms where ``log``. low, high: the range of the values
    themselves, in their own unit (Hz for pitch).
    """

    mean: float
    std: float
    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.std > 0 or not self.low < self.high:
            raise UserError(f"values from {self.low} to {self.high} with deviation {self.std} have no spread to learn")
        if self.log and self.low <= 0:
            raise UserError(
                f"a logarithmic scale cannot begin at {self.low}; give positive values, not normalised ones"
            )

    @classmethod
    def of(cls, values: Tensor, log: bool = False) -> "Spread":
        """Measured on values of any shape; for ``log`` those that are not positive (unvoiced frames) are left out.

        Raises UserError where fewer than two values are left or all are the same.
        """
        values = values.double().flatten()
        values = values[values > 0] if log else values
        if len(values) < 2:
            raise UserError("there are fewer than two values to measure a spread on; give more speech")
        used = values.log() if log else values
        return cls(float(used.mean()), float(used.std()), float(values.min()), float(values.max()), log)


class Scale(nn.Module):
    """Between a quantity's own unit and the one that is learned: zero mean, unit deviation, maybe logarithmic.

    The numbers are buffers, so checkpoints bring their corpus along.
    """

    def __init__(self, spread: Spread):
        super().__init__()
        self.log, self.low = spread.log, spread.low
        self.register_buffer("mean", torch.tensor(float(spread.mean)))
        self.register_buffer("std", torch.tensor(float(spread.std)))

    def normalise(self, value: Tensor) -> Tensor:
        """Values in their own unit -> learned ones. On a logarithmic scale nothing lies below the spread's low end."""
        value = value.clamp(min=self.low).log() if self.log else value
        return (value - self.mean) / self.std

    def restore(self, normal: Tensor) -> Tensor:
        """The way back."""
        value = normal * self.std + self.mean
        return value.exp() if self.log else value


class BinEmbedding(nn.Module):
    """Values [batch, time] -> vectors [batch, time, dim] by bins over the spread's range, the outer ones open.

    They are of equal width, or of equal ratio where the spread is logarithmic; of these the first is for unvoiced
    frames (0 Hz) alone, see ``vitalk.speech.pitch.bucketize``.
    """

    def __init__(self, dim: int, spread: Spread, bins: int = 256):
        super().__init__()
        self.log = spread.log
        make = log_bins if spread.log else torch.linspace
        edges = make(spread.low, spread.high, bins if spread.log else bins - 1)  # so many bins, or so many edges
        self.register_buffer("edges", edges)
        self.table = nn.Embedding(bins, dim)

    def ids(self, value: Tensor) -> Tensor:
        """The bin of each value: int64 between 0 and bins - 1."""
        return log_bucketize(value, self.edges) if self.log else torch.bucketize(value, self.edges)

    def forward(self, value: Tensor) -> Tensor:  # noqa: D102
        return self.table(self.ids(value))


class CurveEmbedding(nn.Module):
    """Learned values [batch, time] -> vectors [batch, time, dim] by one convolution.

    Unlike bins, it has an answer for values that training never showed, as control factors ask for them; the
    design is FastPitch's (arXiv 2006.06873, section 2.1).
    """

    def __init__(self, dim: int, kernel: int = 3):
        super().__init__()
        self.conv = nn.Conv1d(1, dim, kernel, padding=kernel // 2)

    def forward(self, value: Tensor) -> Tensor:  # noqa: D102
        return self.conv(value[:, None]).transpose(1, 2)


class Variance(nn.Module):
    """One quantity, such as pitch, of every symbol or every frame: predicted, controlled, and told to the decoder.

    dim: of the hidden sequence. spread: of the quantity in the corpus. embedding: "bins", so many as ``bins`` says,
    or a "curve"; see ``BinEmbedding``, ``CurveEmbedding``. predictor: makes the predictor for a width and a number of
    outputs. gradient: of the predictor's loss into the hidden sequence, as a factor.
    """

    def __init__(
        self,
        dim: int,
        spread: Spread,
        embedding: Literal["bins", "curve"] = "bins",
        bins: int = 256,
        predictor: Callable[[int, int], nn.Module] = lambda dim, out: VariancePredictor(dim, dim, out),
        gradient: float = 1.0,
    ):
        super().__init__()
        if embedding not in ("bins", "curve"):
            raise UserError(f'there is no embedding "{embedding}"; choose bins or curve')
        self.scale, self.predictor, self.gradient = Scale(spread), predictor(dim, 1), gradient
        self.embedding = CurveEmbedding(dim) if embedding == "curve" else BinEmbedding(dim, spread, bins)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, target: Tensor | None = None, factor: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [batch, time, dim] -> its embedding [batch, time, dim], the prediction and the value, both [batch, time].

        The value is the target, or else the prediction, times ``factor``: in the quantity's own unit, so that a
        pitch factor of 1.2 means 1.2 times the Hz. The prediction is in learned units, without the factor.
        """
        prediction = self.predictor(scale_gradient(x, self.gradient), mask)[..., 0].float()
        value = (self.scale.restore(prediction) if target is None else target.float()) * factor
        embedded = masked(self.embed(value, mask), mask)
        return embedded, prediction, value if mask is None else value.masked_fill(~mask, 0.0)

    def embed(self, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Values in their own unit [batch, time] -> [batch, time, dim]."""
        if isinstance(self.embedding, BinEmbedding):
            return self.embedding(value)
        normal = self.scale.normalise(value)
        return self.embedding(normal if mask is None else normal.masked_fill(~mask, 0.0))
