"""iSTFTNet against the public reimplementation, its multi-stream forms, and the filter bank."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity import parity
from tests.speech.vocoder.fixtures import FOLDER, count, given_inputs, official_state, tones
from vitalk.speech.vocoder.hifigan import from_official, remove_weight_norm
from vitalk.speech.vocoder.istftnet import PQMF, IstftNet, MultiStreamIstft, stuffed
from vitalk.speech.vocoder.stft import inverse_stft, stft

SMALL = {"n_mels": 10, "channels": 16, "rates": (2, 2), "kernels": (4, 4), "resblock": 2}


@torch.no_grad()
def test_agrees_with_the_reimplementation_where_the_phase_is_its():
    loaded = parity.load(FOLDER / "istftnet.small.json")
    expected = loaded["outputs"]
    model = IstftNet(20, 48, (4, 4), (8, 8), phase_scale=1.0)
    model.load_state_dict(from_official(official_state(loaded)))
    mel = given_inputs(loaded, "mel")
    magnitude, phase = model.polar(mel)
    found = {
        "conv_post": model.upsampler(mel), "magnitude_out": magnitude, "phase_out": phase,
        "waveform": model(mel)[:, None],
        "inverse_only": inverse_stft(
            torch.polar(given_inputs(loaded, "magnitude"), given_inputs(loaded, "phase")), 16, 4, "center"
        )[:, None],
        "stft_magnitude": stft(given_inputs(loaded, "wave"), 16, 4, "center").abs(),
    }  # fmt: skip
    for name, value in found.items():
        assert parity.distance(value.numpy(), expected[name]) < 1e-4, name
    assert count(model) == loaded["params"]
    # Its sin(b) leaves most of the circle out of reach: ours turns as far as pi.
    ours = IstftNet(20, 48, (4, 4), (8, 8))
    ours.load_state_dict(model.state_dict())
    torch.testing.assert_close(ours.polar(mel)[1], math.pi * phase)


@pytest.mark.parametrize(
    ("make", "args", "parameters"),
    [
        (IstftNet, {}, 13_262_244),
        (IstftNet, {"channels": 128}, 888_708),
        (MultiStreamIstft, {"channels": 128, "resblock": 2}, 407_341),
    ],
)
def test_sizes_are_those_counted_for_the_published_ones(make, args, parameters):
    assert count(make(**args)) == parameters


@pytest.mark.parametrize(
    "model",
    [IstftNet(**SMALL), MultiStreamIstft(**SMALL), MultiStreamIstft(**SMALL, synthesis="pqmf")],
    ids=["istft", "ms", "mb"],
)
def test_every_frame_becomes_a_hop_and_everything_learns(model):
    for frames in (1, 5):
        assert model(torch.randn(2, 10, frames)).shape == (2, frames * model.hop)
    mel = torch.randn(2, 10, 5)
    wave = model(mel)
    wave.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(remove_weight_norm(model)(mel), wave, atol=1e-5, rtol=1e-5)


def test_streams_are_the_bands_of_the_fixed_filter_bank():
    model = MultiStreamIstft(**SMALL, synthesis="pqmf")
    mel = torch.randn(1, 10, 5)
    torch.testing.assert_close(model(mel), model.pqmf.synthesis(model.bands(mel)))
    assert model.bands(mel).shape == (1, 4, 5 * model.hop // 4)
    assert not [key for key in model.state_dict() if "pqmf" in key], "it is computed, not kept"


@given(st.integers(0, 1000), st.sampled_from([2, 4]))
@settings(max_examples=10, deadline=None)
def test_the_filter_bank_gives_back_what_it_took_apart(seed, bands):
    # Prototypes for two bands need the cut-off that belongs to them.
    bank = PQMF(bands) if bands == 4 else PQMF(2, cutoff=0.267)
    for wave in (torch.randn(2, 4000, generator=torch.Generator().manual_seed(seed)), tones(2, 4000, seed=seed)):
        parts = bank.analysis(wave)
        assert parts.shape == (2, bands, 4000 // bands)
        error = (bank.synthesis(parts) - wave)[:, 100:-100]
        assert 10 * torch.log10(wave[:, 100:-100].square().mean() / error.square().mean()) > 40


def test_a_low_tone_stays_in_the_lowest_band():
    wave = torch.sin(2 * torch.pi * 500 * torch.arange(4000) / 24_000)[None]
    levels = PQMF().analysis(wave)[..., 50:-50].square().mean(2)[0]
    assert levels[0] > 1e4 * levels[1:].max()


def test_zeros_go_between_the_samples():
    found = stuffed(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    assert found.tolist() == [[[2.0, 0.0, 4.0, 0.0], [6.0, 0.0, 8.0, 0.0]]]
