"""Resampling in torch: what networks that train at one rate and hear at another need on the device."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ZEROS, ROLLOFF, BETA = 96, 0.957, 12.0  # with these the filter falls where that of soxr, which features come from, does


class Resample(nn.Module):
    """wave [batch, samples] of ``source`` Hz -> [batch, samples * target / source, rounded up] of ``target`` Hz.

    A windowed sinc, one convolution for all phases; zeros beyond the ends. What lies below 0.91 of half the lower rate
    passes as it is, what lies above half of it comes down to -118 dB.
    """

    def __init__(self, source: int, target: int):
        super().__init__()
        common = math.gcd(source, target)
        self.up, self.down = target // common, source // common
        cutoff = ROLLOFF * min(1.0, target / source)
        self.reach = math.ceil(ZEROS / cutoff)
        tap = np.arange(-self.reach, self.reach + self.down)
        time = np.arange(self.up)[:, None] * self.down / self.up - tap
        window = np.i0(BETA * np.sqrt(np.clip(1 - (time * cutoff / ZEROS) ** 2, 0, None))) / np.i0(BETA)
        filters = cutoff * np.sinc(cutoff * time) * window * (np.abs(time) * cutoff <= ZEROS)
        self.register_buffer("filters", torch.from_numpy(filters).float()[:, None], persistent=False)

    def forward(self, wave: Tensor) -> Tensor:  # noqa: D102
        if self.up == self.down:
            return wave
        padded = F.pad(wave[:, None], (self.reach, self.reach + self.down))
        phases = F.conv1d(padded, self.filters.to(wave.dtype), stride=self.down)
        return phases.transpose(1, 2).flatten(1)[:, : -(-wave.shape[1] * self.up // self.down)]
