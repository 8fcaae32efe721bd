"""F0 and what is made of it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity import parity
from vitalk.errors import UserError
from vitalk.speech.audio import Audio
from vitalk.speech.mel import PRESETS, log_mel
from vitalk.speech.pitch import average_by_duration, bins, bucketize, continuous, f0

FOLDER = Path(__file__).parents[1] / "parity"


def sung(hz, seconds, rate=24_000):
    """A voice-like tone, ten harmonics; hz is a number or a curve [samples]."""
    hz = np.broadcast_to(np.asarray(hz, np.float64), int(seconds * rate))
    phase = 2 * np.pi * np.cumsum(hz) / rate
    return Audio(sum(np.sin(k * phase) / k for k in range(1, 11)).astype(np.float32) * 0.2, rate)


@pytest.mark.parametrize("method", ["dio", "harvest"])
@pytest.mark.parametrize("name", ["vitalk", "tacotron2"])
def test_finds_the_pitch_of_a_tone_and_silence(name, method):
    spec = PRESETS[name]
    tone = sung(180, 0.5, spec.rate).samples
    audio = Audio(np.concatenate([tone, np.zeros(spec.rate // 2, np.float32)]), spec.rate)
    found = f0(audio, spec.hop, spec.center, method=method)
    assert found.dtype == np.float64 and len(found) == spec.frames(spec.rate)
    middle = found[len(found) // 10 : 4 * len(found) // 10]
    np.testing.assert_allclose(middle, 180, rtol=0.01)
    assert not found[6 * len(found) // 10 :].any()


@pytest.mark.parametrize("center", [False, True])
def test_frames_lie_where_the_mels_frames_lie(center):
    rate, hop = 24_000, 1200  # large, so that half a hop is heard: 2.5 Hz
    curve = np.linspace(100, 200, rate)
    found = f0(sung(curve, 1.0), hop, center)
    times = (np.arange(len(found)) + (0 if center else 0.5)) * hop
    inner = slice(3, -3)
    np.testing.assert_allclose(found[inner], np.interp(times, np.arange(rate), curve)[inner], atol=0.7)


@given(st.integers(1, 4000), st.sampled_from(sorted(PRESETS)))
@settings(max_examples=15, deadline=None)
def test_frames_are_those_of_the_mel(samples, name):
    spec = PRESETS[name]
    audio = Audio(0.1 * np.random.default_rng(samples).standard_normal(samples).astype(np.float32), spec.rate)
    found = f0(audio, spec.hop, spec.center)
    assert len(found) == spec.frames(samples) and np.isfinite(found).all()
    assert ((found == 0) | ((found >= 60) & (found <= 800))).all()


def test_hardly_any_sound_has_no_pitch_and_no_error():
    for samples in (0, 1, 299):
        for method in ("dio", "harvest"):
            assert not f0(Audio(np.zeros(samples, np.float32), 24_000), 300, True, method=method).any()


def test_refuses_limits_and_methods_that_cannot_be():
    audio = sung(100, 0.1)
    with pytest.raises(UserError, match="Did you mean harvest"):
        f0(audio, 300, method="harvst")
    for fmin, fmax in ((0, 800), (300, 200), (60, 12_000)):
        with pytest.raises(UserError, match=f"from {fmin} to {fmax} Hz"):
            f0(audio, 300, fmin=fmin, fmax=fmax)


def fixture_curve():
    loaded = parity.load(FOLDER / "fastspeech2.cwt.json")
    t = np.arange(700)
    noise = parity.tensor("noise", **loaded["inputs"]["noise"]).astype(np.float64)
    curve = 180 + 40 * np.sin(2 * np.pi * t / 37) + 15 * np.sin(2 * np.pi * t / 9 + 1) + 4 * noise
    curve[:3] = curve[-4:] = curve[140:146] = 0
    return loaded["outputs"], curve


def test_the_continuous_curve_agrees_with_natspeech():
    expected, curve = fixture_curve()
    assert parity.distance(curve, expected["f0"]) < 1e-6
    assert parity.distance(continuous(curve), expected["continuous_log_f0"]) < 1e-6


@given(st.lists(st.sampled_from([0.0, 80.0, 120.0, 400.0]), min_size=1, max_size=40))
@settings(deadline=None)
def test_the_continuous_curve_has_no_gaps(values):
    curve = np.array(values)
    if not curve.any():
        with pytest.raises(UserError, match="no voiced frame"):
            continuous(curve)
        return
    found = continuous(curve)
    voiced = curve > 0
    np.testing.assert_allclose(np.exp(found[voiced]), curve[voiced])
    assert found.min() >= np.log(curve[voiced].min()) - 1e-9 and found.max() <= np.log(curve.max()) + 1e-9


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_averages_are_those_of_a_loop(seed, some_unvoiced):
    rng = np.random.default_rng(seed)
    durations = rng.integers(0, 6, (3, 7))
    frames = int(durations.sum(1).max()) + int(rng.integers(0, 4))
    values = rng.standard_normal((3, frames)).astype(np.float32) + 1000
    voiced = rng.random((3, frames)) < 0.5 if some_unvoiced else np.ones((3, frames), bool)
    values[~voiced] = -np.inf
    found = average_by_duration(
        torch.from_numpy(values), torch.from_numpy(durations), torch.from_numpy(voiced) if some_unvoiced else None
    )
    for item in range(3):
        cut = np.cumsum(durations[item])
        for symbol in range(7):
            part = slice(cut[symbol] - durations[item, symbol], cut[symbol])
            inside = values[item, part][voiced[item, part]].astype(np.float64)
            assert float(found[item, symbol]) == pytest.approx(inside.mean() if len(inside) else 0.0, rel=1e-6)


def test_durations_beyond_the_values_are_refused():
    with pytest.raises(UserError, match="durations of 9 frames do not fit 8 values"):
        average_by_duration(torch.zeros(1, 8), torch.tensor([[4, 5]]))


@given(st.floats(60, 800), st.floats(60, 800), st.floats(0.01, 5000))
@settings(deadline=None)
def test_bins_are_monotone_and_keep_the_first_for_silence(low, high, any_hz):
    edges = bins()
    assert len(edges) == 255 and edges[0] == pytest.approx(60) and edges[-1] == pytest.approx(800)
    ids = bucketize(torch.tensor([0.0, min(low, high), max(low, high), any_hz], dtype=torch.float64), edges)
    assert ids[0] == 0 and 1 <= ids[1] <= ids[2] <= 255 and 1 <= ids[3] <= 255
    ratios = edges[1:] / edges[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(254), rtol=1e-5, atol=0)


def test_bins_of_normalised_pitch_are_refused():
    with pytest.raises(UserError, match="give Hz, not normalised pitch"):
        bins(-2.5, 3.5)


def data_root():
    try:
        from vitalk.speech.corpus import data_root as root

        return Path(root())
    except (ImportError, ValueError):
        return Path(os.environ.get("VITALK_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.data
def test_the_pitch_of_a_real_voice_is_plausible():
    path = data_root() / "speech" / "kokoro_en" / "wavs" / "jm_kumo_0000.ogg"
    if not path.is_file():
        pytest.skip("the data sets are not there")
    spec = PRESETS["vitalk"]
    audio = Audio.load(path, rate=spec.rate)
    found = f0(audio, spec.hop, spec.center)
    assert len(found) == log_mel(torch.from_numpy(audio.samples)[None], spec).shape[2]
    voiced = found[found > 0]
    assert 0.4 < len(voiced) / len(found) < 0.95
    assert np.percentile(voiced, 2) > 60 and np.percentile(voiced, 98) < 400 and 80 < np.median(voiced) < 180
    assert np.isfinite(continuous(found)).all()
