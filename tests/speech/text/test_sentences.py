"""Sentences, and cuts where they are too long."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.speech.text.sentences import split_sentences


def bare(text):
    return "".join(text.split())


@pytest.mark.parametrize(
    ("lang", "text", "sentences"),
    [
        ("en-us", "Hello. How are you? Fine!", ["Hello.", "How are you?", "Fine!"]),
        ("en-us", "Dr. Smith paid 3.50. He left.", ["Dr. Smith paid 3.50.", "He left."]),
        ("de", "Am 3. März kam Dr. Huber. Ja.", ["Am 3. März kam Dr. Huber.", "Ja."]),
        ("cmn", "你好。再见！", ["你好。", "再见！"]),
        ("hi", "यह वाक्य है। दूसरा वाक्य।", ["यह वाक्य है।", "दूसरा वाक्य।"]),
        ("en-us", "A title\n\nA text that\ngoes on.\nNext", ["A title", "A text that goes on.", "Next"]),
        ("en-us", " \n ", []),
    ],
)
def test_boundaries(lang, text, sentences):
    assert split_sentences(text, lang) == sentences


def test_long_sentences_are_cut_at_clauses_then_words_then_anywhere():
    clauses = split_sentences("one two three, four five six, seven eight nine", longest=32)
    assert clauses == ["one two three, four five six,", "seven eight nine"]
    assert split_sentences("one two three four five", longest=10) == ["one two", "three four", "five"]
    assert [len(piece) for piece in split_sentences("x" * 10_000, longest=400)] == [400] * 25


@given(
    st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n.,!?\"'()aB1。")), max_size=300),
    st.integers(1, 60),
    st.sampled_from(["en-us", "de", "ja", "cmn", "ar", "xx"]),
)
@settings(max_examples=300, deadline=None)
def test_nothing_is_lost_and_nothing_is_too_long(text, longest, lang):
    found = split_sentences(text, lang, longest)
    assert bare("".join(found)) == bare(text)
    assert all(piece.strip() and len(piece) <= longest for piece in found)


def test_halves_of_surrogate_pairs_do_no_harm():
    assert split_sentences("a\ud800b") == ["ab"]


@pytest.mark.parametrize("part", ["a", "word ", "A sentence. ", '"', "\n", "(Hi. ", "a, ", "x\ny"])
def test_a_megabyte(part):
    text = part * (1_000_000 // len(part))
    start = time.process_time()
    found = split_sentences(text)
    assert time.process_time() - start < 5
    assert bare("".join(found)) == bare(text)
