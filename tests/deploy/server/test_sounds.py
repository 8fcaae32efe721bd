import io

import numpy as np
import pytest

from vitalk.deploy.server.sounds import KINDS, Encoder
from vitalk.speech.audio import Audio


def tone(seconds, rate):
    return Audio((0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32), rate)


def decoded(data):
    import av

    with av.open(io.BytesIO(data)) as file:
        frames = list(file.decode(audio=0))
    return sum(f.samples for f in frames) / frames[0].sample_rate, frames


@pytest.mark.parametrize("rate", [22_050, 24_000, 48_000])
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "pcm"])
def test_files_have_the_length_and_the_tone(kind, rate):
    encoder = Encoder(kind, rate)
    data = b"".join([*(encoder.feed(tone(0.5, rate)) for _ in range(4)), encoder.close()])
    seconds, frames = decoded(data)
    assert abs(seconds - 2) < 0.12
    wave = np.concatenate([f.to_ndarray().reshape(-1).astype(float) for f in frames])
    peak = np.fft.rfftfreq(len(wave), 1 / frames[0].sample_rate)[np.abs(np.fft.rfft(wave)).argmax()]
    assert abs(peak - 440) < 5


@pytest.mark.parametrize("rate", [22_050, 24_000, 48_000])
def test_raw_samples_are_at_24_khz(rate):
    encoder = Encoder("pcm", rate)
    data = b"".join([*(encoder.feed(tone(0.5, rate)) for _ in range(4)), encoder.close()])
    assert abs(len(data) / 2 / 24_000 - 2) < 0.01


@pytest.mark.parametrize("kind", ["mp3", "opus", "aac", "wav", "pcm"])
def test_the_first_sound_does_not_wait_for_the_last(kind):
    encoder = Encoder(kind, 24_000)
    assert len(encoder.feed(tone(1, 24_000))) > 1000
    encoder.close()


def test_empty_parts_and_clipped_samples():
    encoder = Encoder("wav", 24_000)
    loud = Audio(np.full(2400, 3.0, np.float32), 24_000)
    data = encoder.feed(Audio(np.zeros(0, np.float32), 24_000)) + encoder.feed(loud) + encoder.close()
    assert np.abs(Audio.load(io.BytesIO(data)).samples - 1).max() < 1e-3
