"""What several tests of vocoders need."""

from pathlib import Path

import torch

from tests.parity import parity

FOLDER = Path(__file__).parents[2] / "parity"


def official_state(fixture):
    return {key: torch.from_numpy(value) for key, value in parity.filled_state(fixture).items()}


def given_inputs(fixture, name):
    return torch.from_numpy(parity.tensor(name, **fixture["inputs"][name]))


def count(module, gains=True):
    """Parameters, on demand without the gains of weight norms."""
    return sum(p.numel() for n, p in module.named_parameters() if gains or not n.endswith("weight.original0"))


def tones(batch=4, samples=8192, rate=24_000, seed=0):
    """Waves [batch, samples] of a few harmonics whose pitch and level wander."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / rate
    pitch = 120 + 120 * torch.rand(batch, 1, generator=generator)
    turns = torch.cumsum(pitch * (1 + 0.1 * torch.sin(20 * time)), 1) / rate
    harmonics = sum(torch.sin(2 * torch.pi * k * turns) / k for k in range(1, 8))
    return 0.1 * harmonics * (1.2 + torch.sin(30 * time)) + 0.002 * torch.randn(batch, samples, generator=generator)
