"""Whose voice it is, and how clean."""

import numpy as np
import pytest

from vitalk.errors import UserError
from vitalk.speech.audio import Audio
from vitalk.speech.judge.need import need
from vitalk.speech.judge.quality import dnsmos
from vitalk.speech.judge.speaker import SpeakerEncoder, similarity

from .conftest import noisy


def test_cosine():
    a, b = np.array([1.0, 0, 0]), np.array([1.0, 1, 0])
    assert similarity(a, 3 * a) == pytest.approx(1) and similarity(a, b) == pytest.approx(0.5**0.5)


def test_sound_too_short_or_silent_has_no_quality():
    with pytest.raises(UserError, match=r"0.05 s of sound are too short for DNSMOS"):
        dnsmos(Audio(np.ones(800, np.float32), 16_000))
    with pytest.raises(UserError, match="silence has no quality"):
        dnsmos(Audio(np.zeros(16_000, np.float32), 16_000))


@pytest.mark.data
def test_the_same_speaker_is_more_alike_than_another(kokoro):
    resemblyzer = pytest.importorskip("resemblyzer")
    encoder = SpeakerEncoder()
    one, again, other = (Audio.load(kokoro[who][i][0]) for who, i in (("jm_kumo", 0), ("jm_kumo", 7), ("jf_alpha", 3)))
    voice = encoder.embed(one)
    assert voice.shape == (256,) and np.linalg.norm(voice) == pytest.approx(1, abs=1e-5) and voice.min() >= 0
    assert encoder.similarity(one, again) > encoder.similarity(one, other) + 0.1
    assert similarity(voice, encoder.embed(Audio(0.5 * one.samples, one.rate))) > 0.95
    mean = encoder.embed_speaker([one, again])
    assert mean.shape == (256,) and similarity(mean, voice) > similarity(encoder.embed(again), voice)
    official = resemblyzer.VoiceEncoder("cpu", verbose=False)
    theirs = official.embed_utterance(resemblyzer.preprocess_wav(one.resampled(16_000).samples, 16_000))
    assert np.abs(theirs - voice).max() < 1e-5
    for silence in (np.zeros(16_000), np.ones(10), 1e-3 * np.random.default_rng(0).standard_normal(4000)):
        with pytest.raises(UserError, match="there is no voice in the sound"):
            encoder.embed(Audio(silence.astype(np.float32), 16_000))


@pytest.mark.data
def test_noise_costs_quality(kokoro):
    pytest.importorskip("speechmos")
    audio = Audio.load(kokoro["jm_kumo"][5][0])
    audio = Audio(audio.samples[: int(2.26 * audio.rate)], audio.rate)  # doubled twice it is just one window
    clean, dirty = dnsmos(audio), dnsmos(noisy(audio, 5))
    assert set(clean) == {"ovrl", "sig", "bak", "p808"} and all(1 <= mark <= 5 for mark in clean.values())
    assert clean["ovrl"] > dirty["ovrl"] + 0.5 and clean["bak"] > dirty["bak"] + 0.5
    samples = audio.resampled(16_000).samples
    theirs = need("speechmos.dnsmos").run(samples, 16_000)
    assert clean["p808"] == pytest.approx(theirs["p808_mos"], abs=1e-5)
    loud = Audio(samples / np.abs(samples).max(), 16_000)
    assert dnsmos(Audio(2 * loud.samples, 16_000)) == pytest.approx(dnsmos(loud), abs=1e-3)
