"""Noise that is drawn and noise that is always the same, for models that speak with it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Draw = Callable[[tuple[int, int, int]], Tensor]


class Noise(nn.Module):
    """Normal noise that is always the same: a table of draws, read as far as it goes and again from its beginning.

    Voices speak with it, so that a text sounds the same every time and an exported graph says what torch says; a
    random node in the graph would have its own generator, and no seed that torch shares. The table's length is a
    prime number, so that its rounds fall on other channels each time.
    """

    LENGTH = 65_521

    def __init__(self, seed: int = 0):
        super().__init__()
        table = torch.randn(self.LENGTH, generator=torch.Generator().manual_seed(seed)).half().float()
        self.register_buffer("table", table, persistent=False)

    def forward(self, shape: tuple[int, int, int]) -> Tensor:
        """shape: [1, channels, frames]."""
        _, channels, frames = shape
        place = torch.arange(frames, device=self.table.device) * channels
        row = torch.arange(channels, device=self.table.device)[:, None]
        return self.table[(row + place) % self.LENGTH][None]
