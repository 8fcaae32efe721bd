"""Resampling in torch: lengths, tones, and soxr."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.speech.audio import Audio
from vitalk.speech.mel import log_mel, mel_spec
from vitalk.speech.resample import Resample

RATES = (16_000, 24_000, 48_000)


@given(st.sampled_from(RATES), st.sampled_from(RATES), st.integers(1, 3000))
@settings(max_examples=25, deadline=None)
def test_lengths_follow_the_rates(source, target, samples):
    assert Resample(source, target)(torch.zeros(2, samples)).shape == (2, -(-samples * target // source))


@pytest.mark.parametrize(("source", "target"), [(48_000, 16_000), (24_000, 16_000), (16_000, 24_000)])
def test_tones_pass_or_vanish(source, target):
    model = Resample(source, target)

    def tone(hertz, rate):
        return torch.sin(2 * torch.pi * hertz * torch.arange(rate // 2).double() / rate)[None]

    passed = model(tone(3000, source))
    inner = slice(1000, -1000)
    torch.testing.assert_close(passed[:, inner], tone(3000, target)[:, inner], atol=1e-4, rtol=0)
    if target < source:
        assert model(tone(9000, source))[:, inner].abs().max() < 1e-4, "above half the target's rate"


def test_mels_are_those_of_soxr():
    draw = np.random.default_rng(0)
    wave = (0.1 * draw.standard_normal(48_000)).astype(np.float32)
    ours = Resample(48_000, 16_000)(torch.from_numpy(wave)[None])
    theirs = torch.from_numpy(Audio(wave, 48_000).resampled(16_000).samples)[None]
    spec = mel_spec("16k")
    difference = (log_mel(ours, spec) - log_mel(theirs, spec))[..., 2:-2].abs()
    assert difference.max() < 0.02 and difference[:, :78].max() < 1e-3, "the last two bands, where the filters fall"
