"""Transcripts and their errors."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.speech.audio import Audio
from vitalk.speech.judge import recogniser
from vitalk.speech.judge.recogniser import Recogniser, cer, count_errors, error_rates, join_model, normalise, wer


@pytest.mark.parametrize(
    ("text", "lang", "words"),
    [
        ("Don't  stop -- well-known “quotes”, $5!", "en", "don't stop wellknown quotes 5"),
        ("Don’t", "en", "don't"),
        ("¿Qué tal, SEÑOR?", "es", "qué tal señor"),
        ("你好，世界！", "zh", "你 好 世 界"),
        ("cafe\u0301", "fr", "café"),
        ("…!", "en", ""),
    ],
)
def test_what_counts_as_words(text, lang, words):
    assert normalise(text, lang) == words


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


def test_whispers_rules_forgive_digits_and_spelling():
    pytest.importorskip("whisper_normalizer")
    said, heard = "Mr. Smith paid twenty-five dollars for the colour.", "Mister Smith paid $25 for the color."
    assert wer(said, heard, normaliser="whisper") == 0 < wer(said, heard)
    assert normalise("¿Qué tal?", "es", "whisper") == "qué tal" and normalise("你好", "zh", "whisper") == "你 好"
    with pytest.raises(UserError, match="no normaliser sed; choose one of seed, whisper"):
        normalise("a", normaliser="sed")


def test_errors_by_hand():
    found = count_errors("the cat sat on the mat", "the bat sat the mat today")
    assert (found.words, found.substitutions, found.deletions, found.insertions) == (6, 1, 1, 1) and found.wer == 0.5
    assert cer("abcd", "abxd") == 0.25 and wer("one", "one two three") == 2 and wer("one two", "") == 1
    assert wer("你好", "你们好", "zh") == cer("你好", "你们好", "zh") == 0.5


def test_the_mean_of_rates_is_not_the_rate_of_sums():
    nine = "one two three four five six seven eight nine"
    rates = error_rates(["yes", nine], ["no", nine])
    assert rates.wer == pytest.approx(0.1) and rates.mean_wer == pytest.approx(0.5)
    assert rates.total.words == 10 and rates.total.wrong_words == 1


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=8), st.lists(st.sampled_from("abcde"), max_size=8))
def test_edits_are_at_least_the_difference_in_length(reference, hypothesis):
    found = count_errors(" ".join(reference), " ".join(hypothesis))
    assert abs(len(reference) - len(hypothesis)) <= found.wrong_words <= max(len(reference), len(hypothesis))
    assert found.words == len(reference) and (found.wrong_words == 0) == (reference == hypothesis)


def test_texts_without_words_are_named():
    with pytest.raises(UserError, match=r"the text '\.\.\.' holds no words"):
        wer("...", "hello")
    with pytest.raises(UserError, match="one transcript a text, got 1 texts and 2 transcripts"):
        error_rates(["a"], ["a", "b"])


def parts(folder, count=2):
    folders = [folder / f"part{i}" / "data" for i in range(1, count + 1)]
    for i, path in enumerate(folders, 1):
        path.mkdir(parents=True)
        (path / f"model.bin.part{i}").write_bytes(bytes([i]) * 3)
    for name in recogniser.SMALL:
        (folders[0] / name).write_text(name)
    return folders


def test_parts_are_joined_by_number_not_by_name(tmp_path):
    folders = parts(tmp_path, 11)
    target = join_model(folders, tmp_path / "cache" / "model")
    assert (target / "model.bin").read_bytes() == b"".join(bytes([i]) * 3 for i in range(1, 12))
    assert sorted(p.name for p in target.iterdir()) == sorted(["model.bin", *recogniser.SMALL])
    assert [p.name for p in target.parent.iterdir()] == ["model"]
    before = (target / "model.bin").stat().st_mtime_ns
    assert join_model(folders, target) == target and (target / "model.bin").stat().st_mtime_ns == before


def test_a_damaged_cache_is_joined_again_and_missing_parts_are_named(tmp_path):
    folders = parts(tmp_path)
    target = join_model(folders, tmp_path / "model")
    (target / "model.bin").write_bytes(b"half")
    assert (join_model(folders, target) / "model.bin").stat().st_size == 6
    (folders[1] / "model.bin.part2").unlink()
    with pytest.raises(UserError, match=r"Whisper base in .* is incomplete"):
        join_model(folders, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .* XDG_CACHE_HOME"):
        join_model(parts(tmp_path), tmp_path / "file" / "model")


def test_packages_and_models_that_are_not_there(monkeypatch, tmp_path):
    pytest.importorskip("faster_whisper")
    with pytest.raises(UserError, match=r"the recogniser .*nothing cannot be loaded on cpu .* one of tiny"):
        Recogniser(tmp_path / "nothing", "cpu")
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(UserError, match=r"needs faster_whisper, which is not installed; pip install 'vitalk\[eval\]'"):
        Recogniser()


@pytest.mark.data
def test_whisper_hears_what_is_said(kokoro):
    pytest.importorskip("faster_whisper")
    pairs = [(Audio.load(path), text) for path, text in (kokoro["jm_kumo"][i] for i in (5, 1000))]
    whisper = Recogniser()
    heard = whisper.transcribe_all([audio for audio, _ in pairs])
    assert error_rates([text for _, text in pairs], heard).wer < 0.3
    with pytest.raises(UserError, match="does not know the language xx"):
        whisper.transcribe(pairs[0][0], "xx")
    with pytest.raises(UserError, match="without samples"):
        whisper.transcribe(Audio(pairs[0][0].samples[:0], 16_000))
