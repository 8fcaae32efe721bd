"""Discriminators of waves: by period, by scale, by spectrogram and by its upper band.

Each maps wave [batch, samples] to (scores, maps): scores [batch, time] of every sub-discriminator, and for every one
the list of its feature maps.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

Judged = tuple[list[Tensor], list[list[Tensor]]]
SLOPE = 0.1
FLOOR = 1e-3  # of magnitudes whose logarithm is taken
RESOLUTIONS = ((1024, 256), (2048, 512), (512, 128))  # n_fft, hop in samples


class _Many(nn.Module):
    def __init__(self, parts: Sequence[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, wave: Tensor) -> Judged:
        """wave [batch, samples] -> (scores, feature maps) of every part."""
        scores, maps = zip(*(part(wave) for part in self.parts), strict=True)
        return list(scores), list(maps)


class _Stack(nn.Module):
    def __init__(self, convs: Sequence[nn.Module], last: nn.Module):
        super().__init__()
        self.convs, self.last = nn.ModuleList(convs), last

    def judge(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
            maps.append(x)
        x = self.last(x)
        return x.flatten(1), [*maps, x]


class _Period(_Stack):
    def __init__(self, period: int, channels: Sequence[int], first_map: bool):
        sizes = [1, *channels]
        strides = [3] * (len(channels) - 1) + [1]
        convs = [
            weight_norm(nn.Conv2d(a, b, (5, 1), (stride, 1), (2, 0)))
            for a, b, stride in zip(sizes, channels, strides, strict=False)
        ]
        super().__init__(convs, weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0))))
        self.period, self.skip = period, 0 if first_map else 1

    def fold(self, wave: Tensor) -> Tensor:
        """wave [batch, samples] -> [batch, 1, samples / period, period], reflected at the end to fit."""
        spare = -wave.shape[1] % self.period
        return F.pad(wave[:, None], (0, spare), mode="reflect").unflatten(2, (-1, self.period))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        scores, maps = self.judge(self.fold(wave))
        return scores, maps[self.skip :]


class MultiPeriodDiscriminator(_Many):
    """Each part looks at every p-th sample (arXiv 2010.05646, section 2.3).

    channels: of the layers; all but the last halve the time to a third. first_map: whether the first layer's feature
    map is among the maps, as in HiFi-GAN; Vocos leaves it out.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 128, 512, 1024, 1024),
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        first_map: bool = True,
    ):
        super().__init__([_Period(period, channels, first_map) for period in periods])

    @classmethod
    def small(cls) -> "MultiPeriodDiscriminator":
        """Three periods, 16 to 64 channels, 0.1 M parameters: what a processor can train with (the size is ours)."""
        return cls((16, 32, 64, 64), (2, 3, 5))


class _Scale(_Stack):
    def __init__(self, channels: int, spectral: bool):
        norm = spectral_norm if spectral else weight_norm
        c = channels
        rows = [  # in, out, kernel, stride, groups
            (1, c, 15, 1, 1), (c, c, 41, 2, 4), (c, 2 * c, 41, 2, 16), (2 * c, 4 * c, 41, 4, 16),
            (4 * c, 8 * c, 41, 4, 16), (8 * c, 8 * c, 41, 1, 16), (8 * c, 8 * c, 5, 1, 1),
        ]  # fmt: skip
        convs = [norm(nn.Conv1d(a, b, k, s, k // 2, groups=g)) for a, b, k, s, g in rows]
        super().__init__(convs, norm(nn.Conv1d(8 * c, 1, 3, padding=1)))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.judge(wave)


class MultiScaleDiscriminator(_Many):
    """The wave itself, at half and at a quarter of its rate (arXiv 2010.05646, section 2.3; arXiv 1910.06711).

    The first part has spectral norm, the others weight norm. channels: of the first layer, a multiple of 16.
    """

    def __init__(self, channels: int = 128):
        super().__init__([_Scale(channels, spectral=i == 0) for i in range(3)])

    def forward(self, wave: Tensor) -> Judged:
        """wave [batch, samples] -> (scores, feature maps) of the three scales."""
        waves = [wave[:, None]]
        for _ in self.parts[1:]:
            waves.append(F.avg_pool1d(waves[-1], 4, 2, padding=2))
        scores, maps = zip(*(part(x) for part, x in zip(self.parts, waves, strict=True)), strict=True)
        return list(scores), list(maps)


class _Resolution(_Stack):
    def __init__(self, n_fft: int, hop: int, channels: int, low: float | None = None):
        rows = [  # kernel, stride over (frequency, time)
            ((7, 5), (2, 2)), ((5, 3), (2, 1)), ((5, 3), (2, 2)), ((3, 3), (2, 1)), ((3, 3), (2, 2)),
        ]  # fmt: skip
        convs = [
            weight_norm(nn.Conv2d(channels if i else 1, channels, k, s, (k[0] // 2, k[1] // 2)))
            for i, (k, s) in enumerate(rows)
        ]
        super().__init__(convs, weight_norm(nn.Conv2d(channels, 1, 3, padding=1)))
        self.n_fft, self.hop, self.low = n_fft, hop, low

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        # What leaks from below would be louder than the upper band: it is heard through a softer window.
        make = torch.ones if self.low is None else torch.hann_window
        window = make(self.n_fft, device=wave.device)
        spectrum = torch.stft(wave.float(), self.n_fft, self.hop, window=window, return_complex=True)
        if self.low is None:
            return self.judge(spectrum.abs()[:, None])
        above = spectrum[:, int(self.low * (self.n_fft // 2)) :].abs()
        return self.judge(above.clamp(min=FLOOR).log()[:, None])


class MultiResolutionDiscriminator(_Many):
    """Linear magnitudes at several resolutions, rectangular window (arXiv 2306.00814, section 3.3; 2106.07889).

    channels: of all layers; 64 in Vocos. resolutions: pairs of n_fft and hop in samples.
    """

    def __init__(self, channels: int = 64, resolutions: Sequence[tuple[int, int]] = RESOLUTIONS):
        super().__init__([_Resolution(n_fft, hop, channels) for n_fft, hop in resolutions])


class BandDiscriminator(_Many):
    """Log-magnitudes of the upper band alone, where the mel says nothing and only realism counts (ours).

    low: where it begins, as a part of half the rate: 1/3 for the band above 8 kHz of 48 kHz. channels: of all layers.
    """

    def __init__(
        self, channels: int = 64, low: float = 1 / 3, resolutions: Sequence[tuple[int, int]] = RESOLUTIONS[:2]
    ):
        super().__init__([_Resolution(n_fft, hop, channels, low) for n_fft, hop in resolutions])
