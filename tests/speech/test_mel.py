"""Log-mel spectrograms against the official front ends."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity import parity
from vitalk.errors import UserError
from vitalk.speech.mel import PRESETS, LogMel, energy, log_mel, magnitudes, mel_spec

FOLDER = Path(__file__).parents[1] / "parity"
SMALL = {"rate": 16_000, "n_fft": 512, "n_mels": 40, "hop": 160, "win": 400, "fmin": 20.0, "fmax": 7600.0}


def fixture(name, gain):
    loaded = parity.load(FOLDER / f"{name}.json")
    wave = torch.from_numpy(parity.tensor("wave", **loaded["inputs"]["wave"]))
    return loaded["outputs"], torch.tanh(gain * wave)


@pytest.mark.parametrize(
    ("key", "spec"),
    [
        ("22k", PRESETS["hifigan"]),
        ("22k_fullband", replace(PRESETS["hifigan"], fmax=None)),
        ("16k_other", replace(PRESETS["hifigan"], **SMALL)),
    ],
)
def test_agrees_with_hifi_gan(key, spec):
    expected, wave = fixture("hifi-gan.mel", 0.3)
    assert parity.distance(log_mel(wave, spec).numpy(), expected[key]) < 1e-4


@pytest.mark.parametrize(
    ("key", "spec"), [("22k", PRESETS["tacotron2"]), ("16k_other", replace(PRESETS["tacotron2"], **SMALL))]
)
def test_mel_and_energy_agree_with_the_tacotron_front_end(key, spec):
    expected, wave = fixture("fastspeech2.mel_energy", 0.3)
    assert parity.distance(log_mel(wave, spec).numpy(), expected[f"{key}_mel"]) < 1e-4
    assert parity.distance(energy(magnitudes(wave, spec)).numpy(), expected[f"{key}_energy"]) < 1e-4


def test_agrees_with_vocos():
    loaded = parity.load(FOLDER / "vocos.small_center.json")
    wave = 0.2 * torch.from_numpy(parity.tensor("wave", **loaded["inputs"]["wave"]))
    spec = replace(PRESETS["vocos"], rate=16_000, n_fft=64, win=64, hop=16, n_mels=20)
    assert parity.distance(LogMel(spec)(wave).numpy(), loaded["outputs"]["log_mel"]) < 1e-4


@given(st.integers(601, 5000), st.sampled_from(sorted(PRESETS)))
@settings(max_examples=20, deadline=None)
def test_frames_are_counted_before_they_are_made(samples, name):
    spec = PRESETS[name]
    assert log_mel(torch.randn(1, samples), spec).shape == (1, spec.n_mels, spec.frames(samples))


def test_silence_is_finite_and_trains():
    wave = torch.zeros(1, 4000, requires_grad=True)
    for spec in PRESETS.values():
        mel = log_mel(wave, spec)
        mel.sum().backward()
        assert mel.isfinite().all() and wave.grad.isfinite().all()


def test_a_tone_lies_in_its_band():
    spec = PRESETS["vitalk"]
    tone = torch.from_numpy(np.sin(2 * np.pi * 1000 * np.arange(24_000) / 24_000)).float()[None]
    band = log_mel(tone, spec).mean(2).argmax()
    centre = spec.basis[band].argmax() * spec.rate / spec.n_fft
    assert abs(float(centre) - 1000) < 40


def test_refuses_what_is_too_short_or_unknown():
    with pytest.raises(UserError, match="601 are needed"):
        log_mel(torch.zeros(1, 600), PRESETS["vitalk"])
    with pytest.raises(UserError, match="Did you mean vocos"):
        mel_spec("vocoss")
