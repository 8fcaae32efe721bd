"""The report of all judges, with stand-ins for the slow ones."""

import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.speech.audio import Audio
from vitalk.speech.judge.evaluate import evaluate
from vitalk.speech.judge.plots import draw
from vitalk.speech.judge.recordings import Recording
from vitalk.speech.judge.report import Report, bootstrap
from vitalk.speech.judge.speaker import SpeakerEncoder

from .conftest import noisy, voice


class Parrot:
    """Stands in for the recogniser: says the same of every recording."""

    name = "parrot"

    def language(self, lang):
        if lang != "en":
            raise UserError(f"the recogniser {self.name} does not know the language {lang}.")

    def transcribe(self, audio, lang):
        return "Hello, world!"


class Ear(SpeakerEncoder):
    """Stands in for the speaker encoder: loudness is the voice, and silence has none."""

    def embed(self, audio):
        if not audio.samples.any():
            raise UserError("there is no voice in the sound")
        return np.array([1.0, np.abs(audio.samples).max()])


def test_words_speaker_and_prosody_in_one_report(tmp_path):
    for module in ("jiwer", "faster_whisper", "resemblyzer", "librosa", "pyworld"):
        pytest.importorskip(module)
    audio = voice()
    items = [
        Recording(noisy(audio, 30), "Hello world", audio, "anna", "one", 0.5, 0.1, np.eye(5)),
        Recording(noisy(audio, 10), "Hello big $ | world", audio, "bert", "two"),
        Recording(Audio(np.zeros(9000, np.float32), 24_000), "Hello", audio, "bert", "odd/name"),
    ]
    report = evaluate(items, judges=("words", "speaker", "prosody"), recogniser=Parrot(), encoder=Ear())
    means = report.means
    assert means["wer"].mean == pytest.approx((0 + 1 / 3 + 1) / 3) and means["wer_pooled"].mean == pytest.approx(2 / 6)
    assert means["similarity"].count == means["mcd_db"].count == 2 and means["seconds"].count == 3
    assert means["rtf"] == (0.5, *report.means["rtf"][1:3], 1) and means["first_audio"].mean == 0.1
    assert report.rows[0]["mcd_db"] < report.rows[1]["mcd_db"] and "ovrl" not in means
    assert report.notes == [
        "odd/name: there is no voice in the sound", "odd/name: silence cannot be compared with speech"
    ]  # fmt: skip
    assert report.worst(2) == [2, 1] and set(report.by_speaker()) == {"anna", "bert"}
    written = report.save(tmp_path / "out", plots=3)
    assert written == ["01_odd_name.png", "02_two.png", "03_one.png", "report.json", "report.md"]
    kept = json.loads((tmp_path / "out" / "report.json").read_text())
    assert kept["rows"][1]["heard"] == "Hello, world!" and kept["means"]["rtf"]["low"] is None
    assert kept["settings"]["recogniser"] == "Whisper parrot" and kept["settings"]["normaliser"] == "seed"
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| WER, all words | 33.33 % |" in text and r"Hello big $ \| world" in text and "## By speaker" in text
    assert all((tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG" for name in written[:3])


def test_damaged_and_missing_files_end_the_run_before_it_starts(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    items = [(voice(), "fine"), (tmp_path / "bad.wav", "x"), (tmp_path / "none.wav", "y")]
    items.append((Audio(np.zeros(0, np.float32), 16_000), "z"))
    with pytest.raises(UserError, match=r"bad\.wav cannot be read.*no sound file at .*none\.wav.*utterance 3 is empty"):
        evaluate(items)


def test_bad_texts_judges_and_packages_are_named(monkeypatch):
    with pytest.raises(UserError, match=r"utterance 0: the text '\?!' holds no words"):
        evaluate([(voice(), "?!")], judges=("words",), recogniser=Parrot())
    with pytest.raises(UserError, match=r"no judge word; choose of words, .* Did you mean words"):
        evaluate([(voice(), "a")], judges=("word",))
    with pytest.raises(UserError, match="no normaliser sed"):
        evaluate([(voice(), "a")], normaliser="sed")
    monkeypatch.setitem(sys.modules, "speechmos.dnsmos", None)
    with pytest.raises(UserError, match=r"needs speechmos, .* pip install 'vitalk\[eval\]'"):
        evaluate([(voice(), "a")], judges=("quality",))


def test_a_folder_of_recordings_is_a_speaker(tmp_path):
    pytest.importorskip("resemblyzer")
    for name, gain in (("a", 1.0), ("b", 0.5)):
        Audio(gain * voice().samples, 24_000).save(tmp_path / f"{name}.wav")
    report = evaluate([(voice(), "a")], judges=("speaker",), speaker=tmp_path, encoder=Ear())
    assert report.means["similarity"].count == 1 and report.settings["similarity to"] == tmp_path.name
    silence = Audio(np.zeros(9, np.float32), 24_000)
    with pytest.raises(UserError, match="the speaker a recording in memory: there is no voice"):
        evaluate([(voice(), "a")], judges=("speaker",), speaker=silence, encoder=Ear())


def test_nothing_is_left_of_a_report_that_cannot_be_written(tmp_path, monkeypatch):
    report = Report({}, [{"name": "a", "speaker": None, "text": "x", "seconds": 1.0}], [], [Recording(voice(), "x")])
    monkeypatch.setattr("vitalk.speech.judge.plots.draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.save(tmp_path / "out", plots=1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        report.save(tmp_path / "file")


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
@settings(max_examples=25, deadline=None)
def test_intervals_hold_values_and_narrow(values):
    found = bootstrap(values)
    assert found.count == len(values) and found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert bootstrap(values) == found
    assert bootstrap(20 * values).high - bootstrap(20 * values).low <= found.high - found.low + 1e-9


def test_intervals_are_those_of_the_normal_distribution_and_of_ratios():
    values = np.random.default_rng(1).standard_normal(400)
    found = bootstrap(values)
    error = 1.96 * values.std() / 20
    assert found.high - found.low == pytest.approx(2 * error, rel=0.1)
    assert bootstrap([1, 0, math.nan], [2, 8, 5])[0] == 0.1 and bootstrap([math.nan]).count == 0
    assert math.isnan(bootstrap([3.0]).low)


def test_pictures_of_a_click_and_without_reference(tmp_path):
    pytest.importorskip("pyworld")
    click = Audio(np.ones(100, np.float32), 24_000)
    assert draw(Recording(click, "click", name="c"), tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.data
def test_a_real_recording_by_every_judge(kokoro):
    for module in ("speechmos", "faster_whisper", "resemblyzer"):
        pytest.importorskip(module)
    path, text = kokoro["jm_kumo"][5]
    report = evaluate([(path, text, path)])
    row = report.rows[0]
    assert row["wer"] < 0.5 and row["similarity"] == pytest.approx(1, abs=1e-5) and row["ovrl"] > 2.5
    assert row["mcd_db"] == row["f0_rmse_hz"] == row["voicing_error"] == 0 and not report.notes
