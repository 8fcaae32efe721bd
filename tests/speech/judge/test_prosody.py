"""Distances between recordings."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.speech.audio import Audio
from vitalk.speech.judge.prosody import (
    CEPSTRA,
    cepstra,
    compare,
    distortion,
    f0_errors,
    mel_cepstral_distortion,
    warp,
)

from .conftest import noisy, voice

pytest.importorskip("librosa")
pytest.importorskip("pyworld")


def test_a_recording_is_like_itself_whatever_its_loudness():
    audio = voice()
    for same in (audio, Audio(0.25 * audio.samples, audio.rate)):
        found = compare(same, audio)
        for distance in (found.f0_rmse_hz, found.f0_rmse_cents, found.mcd_db, found.energy_mae_db):
            assert distance == pytest.approx(0, abs=1e-3)
        assert found.voicing_error == 0 and found.tempo == 1


def test_noise_moves_timbre_more_and_more():
    audio = voice()
    found = [mel_cepstral_distortion(noisy(audio, decibel), audio) for decibel in (40, 20, 0)]
    assert 0 < found[0] < found[1] < found[2]
    assert mel_cepstral_distortion(noisy(audio, 20), audio, align=False) >= found[1]


def test_a_higher_voice_differs_by_its_interval():
    time = np.arange(24_000) / 24_000
    low, high = (
        Audio((0.1 * sum(np.sin(2 * np.pi * k * hz * time) / k for k in range(1, 9))).astype(np.float32), 24_000)
        for hz in (200, 220)
    )
    found = compare(high, low, align=False)
    assert found.f0_rmse_hz == pytest.approx(20, rel=0.02) and found.voicing_error < 0.1
    assert found.f0_rmse_cents == pytest.approx(1200 * math.log2(1.1), rel=0.02)
    aligned = compare(high, low)
    assert aligned.f0_rmse_hz == pytest.approx(20, rel=0.02)


def test_alignment_makes_tempo_count_for_little():
    audio = voice(1.0)
    slow = Audio(audio.resampled(30_000).samples, 24_000)  # slower and lower by a quarter
    found = compare(slow, audio)
    assert found.tempo == pytest.approx(1.25, abs=0.05)
    assert found.f0_rmse_cents == pytest.approx(1200 * math.log2(1.25), rel=0.1)
    assert found.mcd_db < mel_cepstral_distortion(slow, audio, align=False)


def test_distortion_is_the_rms_difference_of_smooth_spectra_in_decibels():
    # for minimum-phase cepstra, 10 sqrt(2) / ln 10 |c - c'| is the RMS of the difference of the spectra in dB
    rng = np.random.default_rng(0)
    places = np.pi * (np.arange(80)[:, None] + 0.5) / 80
    smooth = np.cos(places * np.arange(CEPSTRA + 1)) @ rng.standard_normal((CEPSTRA + 1, 5))
    other = np.cos(places * np.arange(CEPSTRA + 1)) @ rng.standard_normal((CEPSTRA + 1, 5))
    difference = 20 / np.log(10) * (smooth - other)
    difference -= difference.mean(0)  # c_0
    expected = np.sqrt((difference**2).mean(0)).mean()
    assert distortion(cepstra(smooth), cepstra(other)) == pytest.approx(expected, rel=1e-9)


def plain_cost(x, y):
    """Dynamic time warping by its recursion: the least sum of distances along a path."""
    cost = np.linalg.norm(x[:, None] - y[None], axis=-1)
    total = np.full((len(x) + 1, len(y) + 1), np.inf)
    total[0, 0] = 0
    for i in range(len(x)):
        for j in range(len(y)):
            total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    return total[-1, -1]


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 5), (7, 4), (12, 15)])
def test_the_path_is_the_cheapest(m, n):
    rng = np.random.default_rng(m)
    x, y = rng.standard_normal((m, 3)), rng.standard_normal((n, 3))
    rows, columns = warp(x, y)
    assert (rows[0], columns[0], rows[-1], columns[-1]) == (0, 0, m - 1, n - 1)
    steps = np.stack([np.diff(rows), np.diff(columns)])
    assert steps.size == 0 or (steps.min() >= 0 and steps.max() <= 1 and steps.sum(0).min() >= 1)
    assert np.linalg.norm(x[rows] - y[columns], axis=1).sum() == pytest.approx(plain_cost(x, y))


@given(st.lists(st.floats(60, 800), min_size=1, max_size=20), st.floats(0.5, 2))
def test_a_factor_on_f0_is_its_interval(f0, factor):
    f0 = np.array([*f0, 0.0])
    hertz, cents, voicing = f0_errors(factor * f0, f0)
    assert cents == pytest.approx(abs(1200 * math.log2(factor)), abs=1e-6) and voicing == 0
    assert hertz == pytest.approx(abs(factor - 1) * np.sqrt(np.mean(f0[:-1] ** 2)), abs=1e-6)


def test_voicing_counts_frames_voiced_in_one_only():
    assert f0_errors(np.array([100.0, 0, 100, 0]), np.array([100.0, 100, 0, 0]))[2] == 0.5
    hertz, cents, voicing = f0_errors(np.array([100.0, 0]), np.array([0, 100.0]))
    assert math.isnan(hertz) and math.isnan(cents) and voicing == 1


def test_what_cannot_be_compared_is_said():
    audio = voice()
    with pytest.raises(UserError, match="silence cannot be compared"):
        compare(Audio(np.zeros(24_000, np.float32), 24_000), audio)
    with pytest.raises(UserError, match="10 ms of sound are too short"):
        compare(Audio(audio.samples[5000:5240], 24_000), audio, align=False)
    with pytest.raises(UserError, match="61 s of sound are too long to align"):
        compare(Audio(np.tile(audio.samples, 61), 24_000), audio)
