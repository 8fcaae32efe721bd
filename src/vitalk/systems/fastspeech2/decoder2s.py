"""FastSpeech 2s: from the variance adaptor straight to the waveform (arXiv 2006.04558, section 2.4)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import length_mask
from vitalk.speech.acoustic.gated import GatedStack, fold, normed

from .model import FastSpeech2, Output
from .variants import fastspeech2


class WaveDecoder(nn.Module):
    """Hidden sequence [batch, frames, dim] -> waveform [batch, frames * hop].

    A transposed convolution, whose kernel covers two hops so that every sample is reached by two frames, upsamples
    to ``channels``; these go through ``layers`` non-causal gated layers in ``cycles`` of dilations and condition
    each of them. Source: section 2.4 and Parallel WaveGAN (arXiv 1910.11480); no noise goes in. That one sequence is
    both input and condition, and weight norm as in Parallel WaveGAN, are ours, as the paper is silent.
    """

    def __init__(
        self, dim: int = 256, hop: int = 256, channels: int = 64, layers: int = 30, cycles: int = 3, kernel: int = 3
    ):
        super().__init__()
        self.hop = hop
        self.upsample = nn.ConvTranspose1d(
            dim, channels, 2 * hop, stride=hop, padding=(hop + 1) // 2, output_padding=hop % 2
        )
        self.first = nn.Conv1d(channels, channels, 1)
        self.stack = GatedStack(channels, layers, cycles, kernel, condition=channels)
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(channels, channels, 1), nn.ReLU(), nn.Conv1d(channels, 1, 1))
        normed(self)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, frames]: True where there is something; the waveform is silent elsewhere."""
        x = self.upsample(hidden.transpose(1, 2))
        inside = None if mask is None else mask.repeat_interleave(self.hop, 1)
        wave = self.last(self.stack(self.first(x), x, inside))[:, 0]
        return wave if inside is None else wave.masked_fill(~inside, 0.0)

    def fold(self) -> "WaveDecoder":
        """Take weight norm off, for inference."""
        return fold(self)


class WaveDiscriminator(nn.Module):
    """Parallel WaveGAN's judge of waveforms (arXiv 1910.11480, section 4.1): [batch, samples] -> scores, one a sample.

    Ten convolutions without pooling, dilated 1, 1, 2, ... 8, 1; weight norm, leaky ReLU.
    """

    def __init__(self, channels: int = 64, layers: int = 10, kernel: int = 3, slope: float = 0.2):
        super().__init__()
        parts: list[nn.Module] = []
        for i in range(layers - 1):
            dilation = max(i, 1)
            width = channels if i else 1
            parts += [
                nn.Conv1d(width, channels, kernel, dilation=dilation, padding=kernel // 2 * dilation),
                nn.LeakyReLU(slope),
            ]
        self.layers = nn.Sequential(*parts, nn.Conv1d(channels, 1, kernel, padding=kernel // 2))
        normed(self)

    def forward(self, wave: Tensor) -> Tensor:  # noqa: D102
        return self.layers(wave[:, None])[:, 0]


@dataclass
class WaveOutput:
    """wave: [batch, samples]. acoustic: what the acoustic model gave, with its mel where it was asked for."""

    wave: Tensor
    acoustic: Output


class FastSpeech2s(nn.Module):
    """A FastSpeech 2 whose adaptor feeds a waveform decoder; its mel decoder is for training alone.

    acoustic: encoder, adaptor and mel decoder. decoder: of waveforms, of the same width.
    slice_frames: length of the slices that training decodes, 80 frames or 20,480 samples in the paper.
    """

    def __init__(self, acoustic: FastSpeech2, decoder: WaveDecoder, slice_frames: int = 80):
        super().__init__()
        if decoder.upsample.in_channels != acoustic.head.in_features:
            raise UserError(
                f"a waveform decoder of width {decoder.upsample.in_channels} does not fit an acoustic model of width "
                f"{acoustic.head.in_features}; build it with the same dim"
            )
        self.acoustic, self.decoder, self.slice_frames = acoustic, decoder, slice_frames

    def forward(
        self, ids: Tensor, *args: Any, starts: Tensor | None = None, mel: bool = False, **options: Any
    ) -> WaveOutput:
        """Symbols [batch, text] -> waveform [batch, frames * hop], silent behind each item's end.

        starts: int64 [batch], frames at which slices begin: only those are decoded (see ``random_starts``, ``cut``).
        mel: run the auxiliary mel decoder as well. The other arguments are those of ``FastSpeech2``.
        """
        acoustic = self.acoustic(ids, *args, mel=mel, **options)
        hidden, mask = acoustic.hidden, acoustic.frame_mask
        if starts is not None:
            hidden, mask = (cut(x, starts, self.slice_frames) for x in (hidden, mask))
        return WaveOutput(self.decoder(hidden, None if len(ids) == 1 and starts is None else mask), acoustic)


def random_starts(lengths: Tensor, frames: int = 80) -> Tensor:
    """Where slices of ``frames`` frames begin in items of ``lengths`` [batch]: int64 [batch], 0 in shorter items."""
    room = (lengths - frames).clamp(min=0) + 1
    return (torch.rand(len(lengths), device=lengths.device) * room).long().minimum(room - 1)


def cut(x: Tensor, starts: Tensor, steps: int) -> Tensor:
    """Slices of x [batch, time, ...] from ``starts`` [batch] on: [batch, steps, ...], zeros behind the end of time.

    Waveforms that go with slices of hidden frames: ``cut(wave, starts * hop, frames * hop)``.
    """
    index = starts[:, None] + torch.arange(steps, device=x.device)
    inside = length_mask(x.shape[1] - starts, steps).view(*index.shape, *[1] * (x.ndim - 2))
    return x[torch.arange(len(x), device=x.device)[:, None], index.clamp(max=x.shape[1] - 1)] * inside


def fastspeech2s(n_symbols: int, hop: int = 256, **options: Any) -> FastSpeech2s:
    """The paper's size. hop: samples a frame, that of the mel. options: of ``FastSpeech2``."""
    acoustic = fastspeech2(n_symbols, **options)
    return FastSpeech2s(acoustic, WaveDecoder(acoustic.head.in_features, hop))
