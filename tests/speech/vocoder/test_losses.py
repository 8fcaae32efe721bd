"""Losses: their values where they are known, and their gradients where they are delicate."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.speech.vocoder.fixtures import tones
from vitalk.errors import UserError
from vitalk.speech.mel import PRESETS, log_mel
from vitalk.speech.vocoder.losses import (
    SUB_BAND_SETS,
    MelLoss,
    MultiResolutionSTFTLoss,
    discriminator_loss,
    feature_matching,
    generator_loss,
)

DISTANCES = [MelLoss(PRESETS["vitalk"]), MelLoss(PRESETS["vocos"]), MultiResolutionSTFTLoss(),
             MultiResolutionSTFTLoss(SUB_BAND_SETS)]  # fmt: skip


@pytest.mark.parametrize("loss", DISTANCES)
def test_distances_are_zero_for_the_same_and_finite_for_silence(loss):
    wave, silence = tones(2, 4096), torch.zeros(2, 4096)
    for fake, real in ((wave, wave), (silence, silence), (silence, wave), (wave, silence)):
        fake = fake.clone().requires_grad_()
        value = loss(fake, real)
        value.backward()
        assert value.isfinite() and fake.grad.isfinite().all()
        assert (value == 0) == torch.equal(fake, real)


@given(st.floats(0.1, 0.9))
@settings(max_examples=10, deadline=None)
def test_a_quieter_copy_costs_its_level(gain):
    wave = torch.randn(2, 8192, generator=torch.Generator().manual_seed(0))
    step = -torch.tensor(gain).log()
    # Spectral convergence is the share that is missing; logarithms differ by the step.
    torch.testing.assert_close(MultiResolutionSTFTLoss()(gain * wave, wave), 1 - gain + step, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(MelLoss(PRESETS["vitalk"])(gain * wave, wave), step, atol=1e-3, rtol=1e-3)


def test_the_target_may_be_a_mel_already():
    spec = replace(PRESETS["hifigan"], fmax=None)
    fake, real = tones(2, 4096), tones(2, 4096, seed=1)
    torch.testing.assert_close(MelLoss(spec)(fake, log_mel(real, spec)), MelLoss(spec)(fake, real))


def test_adversarial_losses_are_those_of_the_papers():
    real, fake = (
        [torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0]])],
        [torch.tensor([[0.5, -2.0]]), torch.tensor([[0.0]])],
    )
    # HiFi-GAN: mean((1-2)^2, (1-0)^2) + mean(0.25, 4) = 1 + 2.125; the second part is 0.
    assert discriminator_loss(real, fake, "lsgan", "sum").item() == pytest.approx(3.125)
    assert generator_loss(fake, "lsgan", "sum").item() == pytest.approx((0.25 + 9) / 2 + 1)
    # Vocos: mean(0, 1) + mean(1.5, 0) = 1.25, and 0 + 1.
    assert discriminator_loss(real, fake, "hinge", "mean").item() == pytest.approx((1.25 + 1) / 2)
    assert generator_loss(fake, "hinge", "mean").item() == pytest.approx(((0.5 + 3) / 2 + 1) / 2)


def test_features_are_compared_layer_by_layer_and_pull_the_fake_ones_only():
    real = [[torch.zeros(1, 4, requires_grad=True), torch.ones(2)], [torch.zeros(3)]]
    fake = [[torch.full((1, 4), 2.0, requires_grad=True), torch.zeros(2)], [torch.zeros(3)]]
    assert feature_matching(real, fake, "sum").item() == pytest.approx(3)
    loss = feature_matching(real, fake, "mean")
    loss.backward()
    assert loss.item() == pytest.approx(1.5) and real[0][0].grad is None and fake[0][0].grad is not None
    assert feature_matching(real, real, "sum") == 0


def test_short_segments_are_refused():
    with pytest.raises(UserError, match="segments of 1024 samples are too short; give more than 1024"):
        MultiResolutionSTFTLoss()(torch.zeros(1, 1024), torch.zeros(1, 1024))
