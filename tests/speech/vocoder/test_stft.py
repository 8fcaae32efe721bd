"""The inverse short-time Fourier transforms against the forward one, torch's own and each other."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity import parity
from tests.speech.vocoder.fixtures import FOLDER, given_inputs
from vitalk.errors import UserError
from vitalk.speech.vocoder.istft_numpy import overlap_add as overlap_add_numpy
from vitalk.speech.vocoder.stft import inverse_stft, overlap_add, stft

SIZES = st.tuples(st.integers(4, 80), st.integers(1, 80), st.integers(2, 12)).filter(lambda t: t[1] <= t[0] // 2)
PADDINGS = st.sampled_from(["same", "center"])


def spectrum(n_fft, frames, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, n_fft // 2 + 1, frames, dtype=torch.complex64, generator=generator)


@given(SIZES, PADDINGS)
@settings(max_examples=40, deadline=None)
def test_undoes_the_transform_whatever_the_sizes(sizes, padding):
    n_fft, hop, frames = sizes
    samples = hop * (frames + n_fft // hop)
    wave = torch.randn(2, samples, generator=torch.Generator().manual_seed(0))
    back = inverse_stft(stft(wave, n_fft, hop, padding), n_fft, hop, padding)
    assert back.shape == wave.shape
    inside = slice(n_fft // 2, samples - n_fft // 2)
    torch.testing.assert_close(back[:, inside], wave[:, inside], atol=1e-4, rtol=1e-4)


@given(SIZES, PADDINGS)
@settings(max_examples=40, deadline=None)
def test_numpy_gives_the_same_without_torch(sizes, padding):
    n_fft, hop, frames = sizes
    given = spectrum(n_fft, frames)
    expected = inverse_stft(given, n_fft, hop, padding)
    got = overlap_add_numpy(given.numpy(), n_fft, hop, padding)
    assert got.dtype == np.float32 and expected.shape[1] == (frames * hop if padding == "same" else (frames - 1) * hop)
    scale = max(float(expected.abs().max()), 1.0) if expected.numel() else 1.0
    assert got.shape == tuple(expected.shape) and np.abs(got - expected.numpy()).max(initial=0) < 1e-5 * scale
    np.testing.assert_allclose(overlap_add_numpy(given[0].numpy(), n_fft, hop, padding), got[0], atol=1e-5 * scale)


@pytest.mark.parametrize(("n_fft", "hop"), [(64, 16), (1200, 300), (16, 4), (100, 33)])
def test_center_is_what_torch_has(n_fft, hop):
    given = spectrum(n_fft, 9)
    expected = torch.istft(given, n_fft, hop, window=torch.hann_window(n_fft), center=True, length=8 * hop)
    torch.testing.assert_close(inverse_stft(given, n_fft, hop, "center"), expected, atol=1e-5, rtol=1e-4)


def test_agrees_with_vocos():
    loaded = parity.load(FOLDER / "vocos.small_center.json")
    given = torch.complex(given_inputs(loaded, "spec_real"), given_inputs(loaded, "spec_imag"))
    assert parity.distance(inverse_stft(given, 64, 16, "center").numpy(), loaded["outputs"]["istft"]) < 1e-4
    assert parity.distance(overlap_add_numpy(given.numpy(), 64, 16, "center"), loaded["outputs"]["istft"]) < 1e-4


@pytest.mark.parametrize(("size", "hop"), [(12, 4), (10, 4), (7, 7), (5, 1)])
def test_overlap_add_is_what_fold_does(size, hop):
    frames = torch.randn(3, 6, size)
    samples = 5 * hop + size
    expected = torch.nn.functional.fold(frames.transpose(1, 2), (1, samples), (1, size), stride=(1, hop))[:, 0, 0]
    torch.testing.assert_close(overlap_add(frames, hop)[:, :samples], expected)


def test_gradients_agree_with_finite_differences():
    parts = torch.randn(2, 1, 7, 4, dtype=torch.float64, requires_grad=True)
    for padding in ("same", "center"):
        assert torch.autograd.gradcheck(lambda p: inverse_stft(torch.complex(p[0], p[1]), 12, 4, padding), parts)  # noqa: B023


def test_the_gradient_passes_the_turn_of_the_phase_without_a_jump():
    def gradient(phase):
        angle = torch.full((1, 33, 5), phase, dtype=torch.float64, requires_grad=True)
        wave = inverse_stft(torch.complex(angle.cos(), angle.sin()), 64, 16)
        (wave * torch.linspace(-1, 1, wave.shape[1])).sum().backward()
        return angle.grad

    torch.testing.assert_close(gradient(np.pi - 1e-6), gradient(-np.pi + 1e-6), atol=1e-4, rtol=1e-4)


def test_refuses_sizes_that_do_not_fit():
    with pytest.raises(UserError, match="33 bins do not fit n_fft 128 and hop 16"):
        inverse_stft(spectrum(64, 3), 128, 16)
    with pytest.raises(UserError, match="33 bins do not fit n_fft 64 and hop 65"):
        overlap_add_numpy(spectrum(64, 3).numpy(), 64, 65)


def test_the_light_core_needs_no_torch():
    code = "import sys, vitalk.speech.vocoder.istft_numpy; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
