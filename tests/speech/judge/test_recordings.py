"""Folders and lists of recordings."""

import json

import numpy as np
import pytest

from vitalk.errors import UserError
from vitalk.speech.audio import Audio
from vitalk.speech.judge.recordings import Recording, collect, read_metadata


def tone(seconds=0.2):
    return Audio(0.1 * np.sin(np.arange(int(16_000 * seconds)) / 9).astype(np.float32), 16_000)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "wavs").mkdir()
    for name in ("a", "b", "c"):
        tone().save(tmp_path / "wavs" / f"{name}.wav")
    (tmp_path / "metadata.csv").write_text("a|Dr. A|Doctor A\nb|two\n\nc|three\n")
    return tmp_path


def test_ljspeech_layout_takes_the_last_column(folder):
    found, notes = collect(folder)
    assert [(r.name, r.text, r.audio.name) for r in found] == [
        ("a", "Doctor A", "a.wav"), ("b", "two", "b.wav"), ("c", "three", "c.wav")
    ]  # fmt: skip
    assert notes == []


def test_json_lines_carry_speakers_and_times(folder):
    rows = [
        {"id": "a.wav", "text": "one", "speaker": "x", "synthesis_seconds": 0.1, "first_audio_seconds": 0.05},
        {"id": 7, "text": "two\u2028lines", "file": "wavs/b.wav"},
    ]
    path = folder / "metadata.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    found, notes = collect(folder)
    assert found[0].speaker == "x" and found[0].synthesis_seconds == 0.1 and found[0].first_audio_seconds == 0.05
    assert found[1].name == "7" and found[1].audio == folder / "wavs" / "b.wav"
    assert notes == ["1 recordings have no text: c"]


def test_missing_recordings_and_references_are_counted(folder, tmp_path):
    (folder / "texts.csv").write_text("a|one\nb|two\nd|four\n")
    (folder / "real").mkdir()
    tone().save(folder / "real" / "a.flac")
    found, notes = collect(folder, folder / "texts.csv", folder / "real")
    assert [r.reference and r.reference.name for r in found] == ["a.flac", None]
    assert notes == [
        "1 of the 3 texts in texts.csv have no recording", "1 recordings have no text: c",
        "1 of 2 recordings have no reference: b",
    ]  # fmt: skip


def test_lists_and_limits():
    found, _ = collect([(tone(), "one"), ("x/y.wav", "two", "z.wav", "anna"), Recording(tone(), "three", name="n")])
    assert [r.name for r in found] == ["utterance 0", "y", "n"]
    assert found[1].reference == "z.wav" and found[1].speaker == "anna"
    many = [(tone(), str(i)) for i in range(10)]
    assert [r.text for r in collect(many, limit=4)[0]] == ["0", "3", "6", "9"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "a|one\nno text\n", r"line 2 of .*m\.csv is not id\|text: no text"),
        ("m.jsonl", '{"id": "a", "text": "one"}\n{"id": "b"', r"line 2 of .*m\.jsonl is not"),
        ("m.jsonl", '{"id": "a", "text": "one", "synthesis_seconds": "fast"}', "line 1"),
        ("m.csv", "a|one\na|two\n", "line 2 .* has the id a for the second time"),
        ("m.csv", "\n", "lists no texts"),
        ("m.csv", b"a|\xff\xfe", "is no UTF-8 text"),
    ],
)
def test_bad_metadata_is_named(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_metadata(path)


def test_bad_folders_and_empty_texts_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        collect(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds no metadata.jsonl or metadata.csv; .* --text"):
        collect(folder / "wavs")
    (folder / "other.csv").write_text("z|one\n")
    with pytest.raises(UserError, match=r"no recording in .* has a name that .*other.csv lists"):
        collect(folder, folder / "other.csv")
    (folder / "metadata.csv").write_text("a|one\nb| \n")
    with pytest.raises(UserError, match="there is no text for b"):
        collect(folder)
    with pytest.raises(UserError, match="no recording to evaluate"):
        collect([])
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="there is no sound file in"):
        collect([(tone(), "one")], reference=tmp_path / "bare")
