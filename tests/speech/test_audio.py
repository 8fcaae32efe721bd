"""Sound files in and out."""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.speech.audio import FORMATS, Audio, save_parts


def tone(seconds=0.5, rate=24_000, hz=440.0, gain=0.3):
    return Audio((gain * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32), rate)


def loudest(audio):
    spectrum = np.abs(np.fft.rfft(audio.samples * np.hanning(len(audio.samples))))
    return spectrum.argmax() * audio.rate / len(audio.samples)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rate", [22_050, 24_000])
def test_what_is_written_is_read_again(kind, rate, tmp_path):
    audio = tone(rate=rate)
    path = audio.save(tmp_path / f"tone.{kind}")
    back = Audio.load(path)
    assert back.rate == (24_000 if kind in ("ogg", "opus") else rate)
    assert abs(back.seconds - audio.seconds) < 0.1 and abs(loudest(back) - 440) < 5
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_channels_are_averaged_and_rates_changed(tmp_path):
    left, right = tone(hz=440).samples, tone(hz=880).samples
    soundfile.write(tmp_path / "two.wav", np.stack([left, right], 1), 24_000)
    back = Audio.load(tmp_path / "two.wav", rate=16_000)
    assert back.rate == 16_000 and back.seconds == pytest.approx(0.5)
    np.testing.assert_allclose(back.resampled(24_000).samples[2000:-2000], (left + right)[2000:-2000] / 2, atol=2e-3)


def test_bytes_can_be_read_without_a_file():
    assert Audio.load(io.BytesIO(tone().encoded("flac"))).rate == 24_000


@given(st.floats(0.001, 1.0), st.floats(-40, -10))
@settings(max_examples=25, deadline=None)
def test_levels_are_met_without_clipping(gain, target):
    levelled = tone(gain=gain).levelled(target)
    assert levelled.rms() <= target + 0.01 and np.abs(levelled.samples).max() <= 0.991
    if target < -13:  # a sine's peak is 3 dB above its RMS
        assert levelled.rms() == pytest.approx(target, abs=0.01)


def test_silence_is_left_alone():
    silence = Audio(np.zeros(1000, np.float32), 16_000)
    assert silence.levelled() is silence and silence.trimmed() is silence and silence.rms() == float("-inf")


def test_quiet_ends_are_cut_but_for_the_margin():
    middle = tone(1.0)
    padded = Audio(np.concatenate([np.zeros(12_000), middle.samples, np.zeros(24_000)]).astype(np.float32), 24_000)
    trimmed = padded.trimmed(margin=0.05)
    assert trimmed.seconds == pytest.approx(1.1, abs=0.045) and trimmed.trimmed().seconds == pytest.approx(
        1.1, abs=0.045
    )


@pytest.mark.parametrize("content", [b"", b"no sound at all", b"RIFF\x00\x00\x00\x00WAVE"])
def test_damaged_files_are_named(content, tmp_path):
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.wav"):
        Audio.load(tmp_path / "bad.wav")


def test_files_that_are_not_there_or_empty_and_kinds_that_do_not_exist(tmp_path):
    with pytest.raises(UserError, match="no sound file at"):
        Audio.load(tmp_path / "none.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    with pytest.raises(UserError, match="holds no sound"):
        Audio.load(tmp_path / "empty.wav")
    with pytest.raises(UserError, match="cannot write aac; choose one of wav, flac"):
        tone().save(tmp_path / "tone.aac")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        tone().save(tmp_path / "file" / "tone.wav")


@pytest.mark.parametrize("kind", FORMATS)
def test_parts_are_written_as_they_come(kind, tmp_path):
    parts = [tone(0.5), tone(0.7, hz=660)]
    assert save_parts(iter(parts), tmp_path / f"two.{kind}") == pytest.approx(1.2)
    back = Audio.load(tmp_path / f"two.{kind}")
    assert (
        back.seconds == pytest.approx(1.2, abs=0.1) and abs(loudest(Audio(back.samples[:11_000], back.rate)) - 440) < 5
    )


@pytest.mark.parametrize("after", [0, 1])
def test_a_failure_between_parts_leaves_nothing(after, tmp_path):
    def parts():
        yield from [tone(0.1)] * after
        raise UserError("nothing to say")

    with pytest.raises(UserError, match="nothing to say"):
        save_parts(parts(), tmp_path / "two.wav")
    assert list(tmp_path.iterdir()) == []
