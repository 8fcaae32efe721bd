"""The pitch spectrogram against an official one, and what must hold for any curve."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity import parity
from vitalk.speech.pitch import continuous
from vitalk.speech.wavelet import f0_from_spectrogram, inverse, pitch_spectrogram, scales, standardise, transform

EXPECTED = parity.load(Path(__file__).parents[1] / "parity" / "fastspeech2.cwt.json")["outputs"]


@pytest.fixture(scope="module")
def log_f0():
    """The continuous curve of the fixture, [700]."""
    from tests.speech.test_pitch import fixture_curve

    return continuous(fixture_curve()[1])


def smooth(seed, frames):
    """A smooth random curve: movements of 8 frames and more."""
    spectrum = np.random.default_rng(seed).standard_normal((frames // 8, 2)) @ [1, 1j]
    return standardise(np.fft.irfft(np.concatenate([[0], spectrum]), frames))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_agrees_with_natspeech(log_f0, kind):
    curve = torch.from_numpy(log_f0) if kind == "torch" else log_f0
    assert parity.distance(scales(), EXPECTED["scales"]) < 1e-6
    z = standardise(curve)
    assert parity.distance(transform(z), EXPECTED["wavelet"]) < 1e-5
    assert parity.distance(inverse(transform(z)), EXPECTED["inverse"]) < 1e-5
    w, mean, deviation = pitch_spectrogram(curve)
    assert type(w) is type(mean) is type(deviation) is type(curve)
    assert parity.distance(w, EXPECTED["wavelet_normalised"]) < 1e-4
    assert parity.distance(inverse(w), EXPECTED["inverse_of_normalised"]) < 1e-5
    # f0_from_cwt_torch is not compared: it divides by T - 1 where the transform's own statistics divide by T.
    assert parity.distance(f0_from_spectrogram(w, mean, deviation), EXPECTED["f0_from_cwt"]) < 1e-5


@pytest.mark.parametrize(("dt", "first"), [(0.005, 0.01), (0.0125, 0.01), (0.0116, 0.02)])
@given(st.integers(0, 10_000), st.integers(100, 900))
@settings(max_examples=15, deadline=None)
def test_there_and_back_is_close_to_where_it_began(dt, first, seed, frames):
    z = smooth(seed, frames)
    assert np.corrcoef(z, inverse(transform(z, dt, first)))[0, 1] > 0.95


@given(st.integers(1, 130), st.sampled_from([torch.float32, torch.float64]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_short_and_flat_curves_give_no_nan(frames, dtype, flat):
    curve = torch.full((2, frames), 5.3, dtype=dtype)
    if not flat:
        curve[1] += torch.from_numpy(np.random.default_rng(frames).standard_normal(frames)).to(dtype)
    w, mean, deviation = pitch_spectrogram(curve, 0.0125)
    back = f0_from_spectrogram(w, mean, deviation)
    assert w.shape == (2, frames, 10) and w.dtype == dtype and all(v.isfinite().all() for v in (w, mean, deviation))
    torch.testing.assert_close(back[0], curve[0].exp())
    assert not w[0].any() and back.isfinite().all()


def test_a_batch_is_its_curves_and_single_precision_is_enough():
    z = torch.from_numpy(np.stack([smooth(seed, 300) for seed in range(3)]))
    for normalised in (False, True):
        batched = transform(z, 0.0125, normalised=normalised)
        for curve, w in zip(z, batched, strict=True):
            torch.testing.assert_close(transform(curve, 0.0125, normalised=normalised), w)
    single = transform(z.float(), 0.0125)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), transform(z, 0.0125), atol=1e-4, rtol=1e-4)


def test_slow_scales_answer_to_slow_movements():
    t = np.arange(2000) * 0.005
    fast, slow = (np.abs(transform(np.sin(2 * np.pi * hz * t))).mean(0).argmax() for hz in (8.0, 0.25))
    # The Mexican hat of scale s answers best to sqrt(2.5) / (2 pi s) Hz.
    for found, hz in ((fast, 8.0), (slow, 0.25)):
        assert abs(np.log2(scales()[found] / (np.sqrt(2.5) / (2 * np.pi * hz)))) <= 0.6


def test_the_inverse_is_differentiable_and_blind_to_padding():
    w = torch.randn(2, 40, 10, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[1, 25:] = False
    found = inverse(w, mask)
    torch.testing.assert_close(found[1, :25], inverse(w[1, :25]))
    assert not found[1, 25:].any()
    found.square().mul(torch.arange(40)).sum().backward()
    assert w.grad.isfinite().all() and w.grad[0].abs().sum() > 0 and not w.grad[1, 25:].any()
    assert torch.autograd.gradcheck(
        lambda x: inverse(x, mask[:, :30]), torch.randn(2, 30, 10).double().requires_grad_()
    )


def test_gradients_of_a_flat_spectrogram_are_finite():
    w = torch.zeros(1, 20, 10, requires_grad=True)
    inverse(w).sum().backward()
    assert w.grad.isfinite().all()
    for value in (float("nan"), float("inf")):
        padded = torch.randn(1, 20, 10)
        padded[:, 15:] = value
        assert inverse(padded, torch.arange(20)[None] < 15).isfinite().all()
