"""Griffin-Lim: what it gives has the mel that it was given."""

import pytest
import torch

from tests.speech.vocoder.fixtures import tones
from vitalk.speech.mel import PRESETS, log_mel, magnitudes
from vitalk.speech.vocoder.griffin_lim import griffin_lim, linear_magnitudes


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_more_iterations_come_closer(name):
    spec = PRESETS[name]
    wave = tones(2, 40 * spec.hop, spec.rate)
    mel = log_mel(wave, spec)
    distances = []
    for iterations in (0, 30):
        found = griffin_lim(mel, spec, iterations)
        assert found.shape == wave.shape
        distances.append((log_mel(found, spec) - mel)[..., 3:-3].abs().mean())
    assert distances[1] < 0.4 and distances[1] < 0.5 * distances[0]


def test_linear_magnitudes_have_the_mel_they_come_from():
    spec = PRESETS["vitalk"]
    linear = magnitudes(tones(1, 12_000), spec)
    mel = (spec.basis @ linear).log()
    found = linear_magnitudes(mel, spec)
    assert (found >= 0).all() and found.shape == linear.shape
    assert ((spec.basis @ found).log() - mel).abs().mean() < 0.05


def test_the_seed_fixes_the_phases():
    mel = torch.randn(1, 80, 12)
    first, again, other = (griffin_lim(mel, PRESETS["vitalk"], 2, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
