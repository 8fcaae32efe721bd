"""Voices that are judged directly, with stand-ins for voices and recogniser."""

import json

import numpy as np
import pytest

from vitalk.errors import UserError
from vitalk.speech.audio import Audio
from vitalk.speech.judge import voices
from vitalk.speech.judge.evaluate import evaluate
from vitalk.speech.judge.voices import evaluate_voices, labels, say

from .conftest import voice
from .test_evaluate import Parrot


class Hummer:
    """Stands in for a voice: hums a second for each sentence, and keeps what it was asked to say."""

    lang, rate = "en-gb", 16_000

    def __init__(self, name):
        self.name, self.asked = name, []

    def stream(self, text, *, lang=None):
        self.asked.append((text, lang))
        if "unspeakable" in text:
            raise UserError(f"there is nothing to say in {text!r}")
        for _ in text.split("."):
            yield Audio(4 * voice(rate=16_000).samples, 16_000)  # peaks far above full scale


@pytest.fixture
def opened(monkeypatch):
    for module in ("jiwer", "faster_whisper"):
        pytest.importorskip(module)
    found = {}
    monkeypatch.setattr(voices, "open_voice", lambda name: found.setdefault(str(name), Hummer(str(name))))
    return found


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("Hello world\nHello, new world\nHello. World\n")
    return path


def run(names, texts, **options):
    return evaluate_voices(names, texts, **{"judges": ("words",), "recogniser": Parrot(), **options})


def test_one_voice_is_reported_like_a_folder(opened, texts, tmp_path):
    report, written = run(["anna"], texts)
    assert written == [] and [p.name for p in tmp_path.iterdir()] == ["list.txt"]
    assert report.means["wer"].mean == pytest.approx((0 + 1 / 3 + 0) / 3) and report.means["rtf"].count == 3
    assert report.means["first_audio"].mean <= report.means["rtf"].mean * 2  # seconds of sound, at most 2
    assert report.settings["voices"] == ["anna"] and report.settings["texts"] == "list.txt"
    assert report.header() == ["", "mean", "95 % interval", "utterances"] and not report.by_speaker()
    # The first sentence is said once more, in the voice's own English.
    assert [text for text, _ in opened["anna"].asked] == [
        "Hello world",
        "Hello world",
        "Hello, new world",
        "Hello. World",
    ]
    assert {lang for _, lang in opened["anna"].asked} == {None}


def test_several_stand_side_by_side_in_their_order(opened, texts, tmp_path):
    report, written = run(["zoe", "anna"], texts, limit=2, output=tmp_path / "out")
    assert (
        report.header() == ["", "zoe", "anna"] and report.means == {} and list(report.by_speaker()) == ["zoe", "anna"]
    )
    lines = {line[0]: line[1:] for line in report.table()}
    assert lines["WER, all words, %"] == lines["WER, all words, %"][:1] * 2 == ("0.00 (0.00 to 0.00)",) * 2
    assert written == ["report.json", "report.md", "metadata.jsonl", "4 recordings"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "|  | zoe | anna |" in text and "By speaker" not in text
    kept = json.loads((tmp_path / "out" / "report.json").read_text())
    assert kept["means"] == {} and kept["by_speaker"]["zoe"]["wer"]["mean"] == 0 and len(kept["rows"]) == 4


def test_the_folder_can_be_judged_again(opened, texts, tmp_path):
    first, _ = run(["zoe", "anna"], texts, output=tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.wav"))[:2] == ["anna-001.wav", "anna-002.wav"]
    sound = Audio.load(tmp_path / "out" / "anna-001.wav")
    assert np.abs(sound.samples).max() < 1 and sound.rms() == pytest.approx(-23, abs=0.2)
    again = evaluate(tmp_path / "out", judges=("words",), recogniser=Parrot())
    for name, means in again.by_speaker().items():
        assert means == first.by_speaker()[name]


def test_references_have_the_ids_of_the_texts(opened, texts, tmp_path):
    for module in ("librosa", "pyworld"):
        pytest.importorskip(module)
    (tmp_path / "real").mkdir()
    voice().save(tmp_path / "real" / "002.wav")
    report, _ = run(["anna"], texts, reference=tmp_path / "real", judges=("words", "prosody"))
    assert report.means["mcd_db"].count == 1
    assert report.notes == ["2 of 3 recordings have no reference: anna/001, anna/003"]


def test_a_foreign_list_is_read_as_such(opened, texts):
    class Polyglot(Parrot):
        def language(self, lang):
            return lang

    run(["anna"], texts, lang="de", recogniser=Polyglot())
    assert {lang for _, lang in opened["anna"].asked} == {"de"}


def test_what_is_wrong_ends_the_run_before_anything_is_said(opened, texts, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty.csv").write_text("a|one\nb| \n")
    (tmp_path / "marks.txt").write_text("Hello world\n…\n")
    for options, message in (
        ({"output": tmp_path / "file"}, "cannot be written to"),
        ({"output": tmp_path / "file" / "deeper"}, "cannot be written to"),
        ({"text": tmp_path / "empty.csv"}, "there is no text for anna/b"),
        ({"text": tmp_path / "marks.txt"}, "anna/002: the text '…' holds no words"),
        ({"text": tmp_path / "none.txt"}, "there is no file"),
        ({"reference": tmp_path / "none"}, "there is no folder"),
        ({"reference": tmp_path}, "there is no sound file"),
        ({"speaker": tmp_path / "none.wav"}, "there is no sound file at"),
        ({"lang": "fr"}, "does not know the language fr"),
        ({"judges": ("word",)}, "no judge word"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_voices(["anna"], **{"text": texts, "judges": ("words",), "recogniser": Parrot(), **options})
    assert opened["anna"].asked == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.csv", "file", "list.txt", "marks.txt"]


def test_a_sentence_that_cannot_be_said_leaves_nothing(opened, tmp_path):
    (tmp_path / "list.txt").write_text("Hello\nunspeakable\n")
    with pytest.raises(UserError, match="nothing to say in 'unspeakable'"):
        run(["anna"], tmp_path / "list.txt", output=tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["list.txt"]


def test_labels_are_short_and_differ():
    assert list(labels(["vitalk", "runs/a b.onnx"])) == ["vitalk", "a_b"]
    assert list(labels(["x/voice.onnx", "y/voice.onnx", "kokoro"])) == ["x_voice_onnx", "y_voice_onnx", "kokoro"]
    for names, message in (
        ([], "no voice to judge"),
        (["kokoro", "kokoro"], "the voice kokoro is given twice"),
        (["a b", "a_b"], "the voice a_b is given twice; .* rename"),
    ):
        with pytest.raises(UserError, match=message):
            labels(names)


def test_the_clock_of_first_audio_stops_at_the_first_sentence():
    import time

    class Slow(Hummer):
        def stream(self, text, *, lang=None):
            for _ in range(3):
                time.sleep(0.05)
                yield Audio(np.ones(8, np.float32), 16_000)

    audio, seconds, first = say(Slow("slow"), "Hello")
    assert len(audio.samples) == 24 and 0.05 <= first <= seconds - 0.1
