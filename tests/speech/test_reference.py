"""Recordings to sound like: levelled and cut where they are speech, refused with a remedy where they are none."""

import numpy as np
import pytest

from vitalk.errors import UserError
from vitalk.speech.audio import Audio
from vitalk.speech.mel import mel_spec
from vitalk.speech.reference import speaker_reference

SPEC = mel_spec("vitalk")


def hum(seconds, rate=24_000):
    time = np.arange(int(seconds * rate)) / rate
    return sum(0.2 * np.sin(2 * np.pi * 150 * k * time) / k for k in range(1, 9)).astype(np.float32)


@pytest.mark.parametrize("rate", [16_000, 24_000, 96_000])
def test_any_rate_gives_one_rate_and_level(rate):
    quiet = np.zeros(rate, np.float32)
    found = speaker_reference(Audio(np.concatenate([quiet, 0.1 * hum(2, rate), quiet]), rate), SPEC)
    assert found.rate == SPEC.rate and abs(found.rms() + 23) < 0.1 and abs(found.seconds - 2) < 0.2


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        (hum(0.1), r"has 0\.10 s of sound; give 1 s or more"),
        (np.zeros(48_000, np.float32), "is silent; give a recording"),
        (np.zeros(0, np.float32), "is silent; give a recording"),
        (np.random.default_rng(0).normal(0, 0.1, 72_000).astype(np.float32), "has a pitch, so it is no speech"),
    ],
    ids=["short", "silent", "empty", "noise"],
)
def test_what_is_no_speech_is_refused(samples, sentence):
    with pytest.raises(UserError, match=sentence):
        speaker_reference(Audio(samples, 24_000), SPEC)
