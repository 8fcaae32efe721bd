"""Prosody in two levels: heard in a recording while training, predicted from the text afterwards."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import masked
from vitalk.speech.acoustic.variance import VariancePredictor
from vitalk.speech.audio import Audio
from vitalk.speech.mel import log_mel, mel_spec
from vitalk.speech.reference import speaker_reference

from .attention import RelativeAttention, TimedAttention
from .conformer import SLOPE, ChannelNorm, TimeNorm


@dataclass(frozen=True)
class Reference:
    """Sizes of a reference encoder. gru: its width. norm: over "channels", or over "time" as in voicesmith."""

    channels: tuple[int, ...] = (32, 32, 64, 64, 128, 128)
    strides: tuple[int, ...] = (1, 1, 2, 1, 2, 1)
    kernel: int = 3
    gru: int = 32
    norm: Literal["channels", "time"] = "channels"

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.strides):
            raise UserError(f"{len(self.channels)} channels need as many strides, got {len(self.strides)}")


@dataclass(frozen=True)
class Predictor:
    """Sizes of a predictor. kind: "dense" convolutions (``VariancePredictor``), or "separable" ones as in voicesmith.

    hidden: width between, None for that of the input.
    """

    kind: Literal["dense", "separable"] = "dense"
    kernel: int = 5
    hidden: int | None = None
    dropout: float = 0.5

    def __call__(self, dim: int, out: int) -> nn.Module:
        """The predictor for a width and a number of outputs."""
        hidden = self.hidden or dim
        if self.kind == "separable":
            return SeparablePredictor(dim, hidden, out, self.kernel, self.dropout)
        return VariancePredictor(dim, hidden, out, kernel=self.kernel, dropout=self.dropout)


class SeparablePredictor(nn.Module):
    """``VariancePredictor`` of pointwise and depthwise convolutions with leaky ReLUs, as in dunky11/voicesmith.

    x [batch, time, dim] -> [batch, time, out].
    """

    def __init__(self, dim: int, hidden: int, out: int, kernel: int = 5, dropout: float = 0.5):
        super().__init__()
        self.pointwise = nn.ModuleList(nn.Conv1d(a, b, 1) for a, b in pairwise((dim, hidden, hidden)))
        self.depthwise = nn.ModuleList(
            nn.Conv1d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(hidden, out)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, time]: True where there is something; the output is zero elsewhere."""
        for pointwise, depthwise, norm in zip(self.pointwise, self.depthwise, self.norms, strict=True):
            x = masked(pointwise(x.transpose(1, 2)).transpose(1, 2), mask)
            x = F.leaky_relu(depthwise(x.transpose(1, 2)), SLOPE).transpose(1, 2)
            x = self.dropout(norm(x))
        return masked(self.linear(x), mask)


class ReferenceEncoder(nn.Module):
    """mel [batch, mels, frames] -> states of a GRU at the frame rate over ``stride``, and its last, [batch, gru].

    Convolutions of which some stride, in front two channels that say where in the utterance a frame lies
    (arXiv 1807.03247).
    """

    def __init__(self, mels: int, sizes: Reference = Reference()):
        super().__init__()
        widths = (mels + 2, *sizes.channels)
        self.convs = nn.ModuleList(
            nn.Conv1d(a, b, sizes.kernel, stride, padding=sizes.kernel // 2)
            for (a, b), stride in zip(pairwise(widths), sizes.strides, strict=True)
        )
        make = (lambda width: TimeNorm(width, each=True)) if sizes.norm == "time" else ChannelNorm
        self.norms = nn.ModuleList(make(width) for width in sizes.channels)
        self.gru = nn.GRU(sizes.channels[-1], sizes.gru, batch_first=True)
        self.stride = math.prod(sizes.strides)

    def forward(self, mel: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """mask [batch, frames] -> (states [batch, frames / stride, gru], the last [batch, gru], their mask)."""
        x = torch.cat([mel, _coordinates(mel, mask)], 1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x if mask is None else x.masked_fill(~mask[:, None], 0.0))
            mask = None if mask is None else mask[:, :: conv.stride[0]]
            x = norm(F.leaky_relu(x, SLOPE), mask)
        with torch.autocast(x.device.type, enabled=False):
            states, _ = self.gru(x.transpose(1, 2).float())  # reads forward, so padding behind does no harm
        states = masked(states, mask)
        if mask is None:
            return states, states[:, -1], None
        last = (mask.sum(1) - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[2])
        return states, states.gather(1, last)[:, 0], mask


def _coordinates(mel: Tensor, mask: Tensor | None) -> Tensor:
    """Place of each frame in its utterance, -1 to 1, and its distance from 0.5: [batch, 2, frames]."""
    frames = mel.shape[2]
    last = mel.new_full((len(mel), 1), frames - 1) if mask is None else mask.sum(1, keepdim=True) - 1
    place = torch.arange(frames, device=mel.device) / last.clamp(min=1) * 2 - 1
    return torch.stack([place, (place - 0.5).abs()], 1).to(mel.dtype)


class StyleTokens(nn.Module):
    """A mixture of learned tokens (arXiv 1803.09017): query [batch, dim / 2] -> [batch, dim]."""

    def __init__(self, dim: int, tokens: int = 32):
        super().__init__()
        self.embed = nn.Parameter(0.5 * torch.randn(tokens, dim))
        self.query = nn.Linear(dim // 2, dim, bias=False)
        self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(2))

    def forward(self, query: Tensor) -> Tensor:  # noqa: D102
        tokens = self.embed.tanh()
        scores = self.query(query) @ self.key(tokens).T * tokens.shape[1] ** -0.5
        return scores.softmax(-1) @ self.value(tokens)


class UtteranceProsody(nn.Module):
    """mel [batch, mels, frames] -> one vector for the utterance, [batch, out]."""

    def __init__(
        self, mels: int, dim: int, out: int, tokens: int, sizes: Reference = Reference(), dropout: float = 0.1
    ):
        super().__init__()
        self.encoder = ReferenceEncoder(mels, sizes)
        self.proj, self.tokens = nn.Linear(sizes.gru, dim // 2), StyleTokens(dim, tokens)
        self.out, self.dropout = nn.Linear(dim, out), nn.Dropout(dropout)

    def forward(self, mel: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, frames]: True where there is something."""
        return self.dropout(self.out(self.tokens(self.proj(self.encoder(mel, mask)[1]))))


class PhonemeProsody(nn.Module):
    """Phonemes x [batch, text, dim] that look at a recording of themselves -> a narrow vector each, [batch, text, out].

    wrapped: attention as in voicesmith; else ``TimedAttention``, whose times are those of the durations.
    """

    def __init__(
        self, mels: int, dim: int, heads: int, out: int, sizes: Reference = Reference(), dropout: float = 0.1,
        wrapped: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.encoder, self.proj = ReferenceEncoder(mels, sizes), nn.Linear(sizes.gru, dim)
        self.attention = RelativeAttention(dim, heads, wrapped=True) if wrapped else TimedAttention(dim, heads)
        self.out, self.dropout = nn.Linear(dim, out), nn.Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, mel: Tensor, mel_mask: Tensor | None, durations: Tensor
    ) -> Tensor:
        """mask [batch, text], mel [batch, mels, frames], mel_mask [batch, frames], durations [batch, text]: frames."""
        states, _, state_mask = self.encoder(mel, mel_mask)
        source = self.proj(states)
        if isinstance(self.attention, TimedAttention):
            centres = durations.cumsum(1) - 0.5 * durations
            frames = self.encoder.stride * (torch.arange(source.shape[1], device=x.device) + 0.5)
            heard = self.attention(x, centres, source, frames, state_mask)
        else:
            heard = self.attention(x, mask, source, state_mask)
        return masked(self.out(self.dropout(heard)), mask)


def unit(x: Tensor) -> Tensor:
    """Vectors [..., dim] at mean 0 and deviation 1, each for itself: what predictors are compared on."""
    return F.layer_norm(x.float(), x.shape[-1:])


def reference_mel(audio: Audio, preset: str) -> Tensor:
    """The log-mel [1, mels, frames] of a recording whose utterance prosody is to be followed, of any rate.

    preset: of the model's mel. The recording is trimmed and brought to the level of the training data.
    Raises UserError where there is less than a second of speech, or sound without a voice.
    """
    spec = mel_spec(preset)
    return log_mel(torch.from_numpy(speaker_reference(audio, spec).samples)[None], spec)
