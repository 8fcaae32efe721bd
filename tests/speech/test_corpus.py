"""Corpora from folders: lists, sounds, splits, and what is wrong with them in one sentence."""

import json

import numpy as np
import pytest

from vitalk.errors import UserError
from vitalk.files import data_root
from vitalk.speech.audio import Audio
from vitalk.speech.corpus import open_corpus, split


def sound(path, seconds=0.2):
    path.parent.mkdir(parents=True, exist_ok=True)
    Audio(np.sin(np.arange(int(seconds * 16_000)) / 20).astype(np.float32) / 3, 16_000).save(path)


@pytest.fixture
def ljspeech(tmp_path):
    folder = tmp_path / "lj"
    for i in range(4):
        sound(folder / "wavs" / f"LJ-{i}.wav")
    (folder / "metadata.csv").write_text("".join(f"LJ-{i}|Text {i}.|Text number {i}.\n" for i in range(4)))
    return folder


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "many"
    rows = []
    for i in range(40):
        sound(folder / "wavs" / f"{i:02d}.ogg", 0.1)
        rows.append({"id": f"{i:02d}", "speaker": f"s{i % 5}", "text": f"words {i}", "phonemes": "wˈɜːdz"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_reads_a_folder_laid_out_as_ljspeech(ljspeech):
    clips = open_corpus(ljspeech)
    assert [c.text for c in clips] == [f"Text number {i}." for i in range(4)]
    assert {c.speaker for c in clips} == {"lj"} and clips[0].phonemes is None
    assert clips[2].load().seconds == pytest.approx(0.2)


def test_sounds_may_lie_beside_the_list(tmp_path):
    sound(tmp_path / "hello.flac")
    (tmp_path / "metadata.csv").write_text("hello|Hello there.")
    assert open_corpus(tmp_path)[0].load().rate == 16_000


def test_reads_speakers_and_phonemes_and_joins_corpora(many, ljspeech):
    clips = open_corpus([str(many), str(ljspeech)])
    assert len(clips) == 44 and clips[0].id == "many/00" and clips[0].phonemes == "wˈɜːdz"
    assert {c.speaker for c in open_corpus(many, speakers=["s1", "s3"])} == {"s1", "s3"}
    with pytest.raises(UserError, match="no speaker zoe; it has s0, s1"):
        open_corpus(many, speakers=["zoe"])


@pytest.mark.parametrize("by", ["clip", "speaker"])
def test_splits_are_disjoint_stable_and_about_as_large_as_asked(many, by):
    clips = open_corpus(many)
    train, test = split(clips, 0.2, by)
    name = (lambda c: c.id) if by == "clip" else (lambda c: c.speaker)
    assert {name(c) for c in train}.isdisjoint(name(c) for c in test) and len(train) + len(test) == 40
    assert len(test) == 8
    assert split(clips[::-1], 0.2, by)[1] == test[::-1]


def test_a_part_is_never_empty(ljspeech):
    train, test = split(open_corpus(ljspeech), 0.001)
    assert len(test) == 1 and len(train) == 3
    with pytest.raises(UserError, match="1 speakers"):
        split(train, by="speaker")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("LJ-0|here\nLJ-9|not here\n", "1 of 2 entries of .* have no sound file, first LJ-9"),
        ("LJ-0|here\nLJ-1|  \n", "have no text, first LJ-1"),
        ("LJ-0|one\nLJ-0|two\n", "line 2 of .* has the id LJ-0 for the second time"),
        ("LJ-0\n", r"line 1 of .* is not id\|text: LJ-0"),
        ("", "lists no texts"),
    ],
)
def test_says_what_is_wrong_with_a_list(ljspeech, text, message):
    (ljspeech / "metadata.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        open_corpus(ljspeech)


def test_says_what_is_wrong_with_a_line_of_json(many):
    (many / "metadata.jsonl").write_text('{"id": "00", "text": "x"}\n{"id": "01"}\n')
    with pytest.raises(UserError, match=r"line 2 of .* is not"):
        open_corpus(many)
    (many / "metadata.jsonl").write_text("{nonsense")
    with pytest.raises(UserError, match="line 1"):
        open_corpus(many)


def test_says_what_is_wrong_with_a_folder(tmp_path):
    with pytest.raises(UserError, match="no corpus at"):
        open_corpus(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no list of texts"):
        open_corpus(tmp_path)


@pytest.mark.data
def test_reads_the_real_corpora():
    root = data_root() / "speech"
    if not root.is_dir():
        pytest.skip("the speech sets are not in the data folder (VITALK_DATA)")
    clips = open_corpus(root / "kokoro_en", speakers=["jm_kumo"])
    assert len(clips) == 2300 and clips[0].phonemes and clips[0].load().rate == 24_000
    assert len(open_corpus(root / "prompts" / "en")) == 554
