"""Sounds to judge: made-up voices for the pure tests, real recordings for those marked data."""

import json

import numpy as np
import pytest

from vitalk.files import data_root
from vitalk.speech.audio import Audio


def voice(seconds=1.0, hz=150.0, rate=24_000, seed=0):
    """Something like a vowel: harmonics of a gliding pitch through formants that move, with pauses at both ends."""
    time = np.arange(int(seconds * rate)) / rate
    pitch = hz * (1 + 0.1 * np.sin(2 * np.pi * 1.5 * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    orders = np.arange(1, 25)[:, None]
    formants = np.array([600, 1500, 2600])[:, None, None] + np.array([250, 500, 100])[:, None, None] * np.sin(
        2 * np.pi * 2.3 * time
    )
    gains = np.exp(-(((orders * pitch - formants) / 200) ** 2)).sum(0) / orders + 1e-3
    wave = (gains * np.sin(orders * phase)).sum(0) * np.clip(10 * np.minimum(time, time[::-1]), 0, 1)
    noise = 1e-4 * np.random.default_rng(seed).standard_normal(len(wave))
    return Audio((0.2 * wave / np.abs(wave).max() + noise).astype(np.float32), rate)


def noisy(audio, decibel, seed=1):
    """``audio`` with white noise, ``decibel`` below it."""
    noise = np.random.default_rng(seed).standard_normal(len(audio.samples))
    noise *= 10 ** ((audio.rms() - decibel) / 20)
    return Audio((audio.samples + noise).astype(np.float32), audio.rate)


@pytest.fixture(scope="session")
def kokoro():
    """speaker -> [(path, text)] of real recordings."""
    folder = data_root() / "speech" / "kokoro_en"
    if not folder.is_dir():
        pytest.skip("kokoro_en is not in the data folder (VITALK_DATA)")
    found = {}
    for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["speaker"], []).append((folder / "wavs" / f"{row['id']}.ogg", row["text"]))
    return found
