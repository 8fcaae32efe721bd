"""Discriminators: sizes, shapes, and what they are asked for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.speech.vocoder.fixtures import count
from vitalk.speech.vocoder.discriminators import (
    MultiPeriodDiscriminator,
    MultiResolutionDiscriminator,
    MultiScaleDiscriminator,
)


@pytest.mark.parametrize(
    ("make", "millions"),
    [
        (MultiPeriodDiscriminator, 41.09),
        (MultiPeriodDiscriminator.small, 0.101),
        (MultiScaleDiscriminator, 29.61),
        (MultiResolutionDiscriminator, 0.599),
        (lambda: MultiResolutionDiscriminator(16), 0.0392),
    ],
)
def test_sizes_are_the_published_ones(make, millions):
    assert count(make(), gains=False) == pytest.approx(1e6 * millions, rel=0.002)


@pytest.mark.parametrize(
    ("make", "parts", "maps"),
    [
        (lambda: MultiPeriodDiscriminator((4, 8, 8), (2, 3, 5, 7)), 4, 4),
        (lambda: MultiPeriodDiscriminator((4, 8, 8), (2, 3), first_map=False), 2, 3),
        (lambda: MultiScaleDiscriminator(16), 3, 8),
        (lambda: MultiResolutionDiscriminator(4), 3, 6),
    ],
)
def test_scores_and_feature_maps(make, parts, maps):
    model = make()
    wave = torch.randn(2, 3001, requires_grad=True)
    scores, features = model(wave)
    assert len(scores) == len(features) == parts and {len(part) for part in features} == {maps}
    for score, part in zip(scores, features, strict=True):
        assert score.ndim == 2 and len(score) == 2
        torch.testing.assert_close(part[-1].flatten(1), score, msg="the last map is the score")
    sum(score.sum() for score in scores).backward()
    assert wave.grad.isfinite().all() and wave.grad.abs().sum() > 0


@given(st.integers(12, 200), st.sampled_from([2, 3, 5, 7, 11]))
@settings(max_examples=30, deadline=None)
def test_waves_are_folded_by_the_period(samples, period):
    part = MultiPeriodDiscriminator((2, 2), (period,)).parts[0]
    wave = torch.arange(samples).float()[None]
    folded = part.fold(wave)
    assert folded.shape == (1, 1, -(-samples // period), period)
    flat = folded.flatten()
    assert torch.equal(flat[:samples], wave[0])
    assert torch.equal(flat[samples:], wave[0].flip(0)[1 : 1 + len(flat) - samples]), "reflected at the end"


def test_the_first_scale_has_spectral_norm():
    model = MultiScaleDiscriminator(16)
    kinds = [type(part.convs[0].parametrizations.weight[0]).__name__ for part in model.parts]
    assert kinds == ["_SpectralNorm", "_WeightNorm", "_WeightNorm"]


def test_silence_is_judged_too():
    for model in (MultiResolutionDiscriminator(4), MultiPeriodDiscriminator((4, 4), (2, 3))):
        wave = torch.zeros(1, 3000, requires_grad=True)
        scores, _ = model(wave)
        sum(score.sum() for score in scores).backward()
        assert wave.grad.isfinite().all()
