"""Words said twice and words left out, in made-up transcripts."""

import pytest

from vitalk.errors import UserError
from vitalk.speech.judge.recogniser import normalise
from vitalk.speech.judge.robustness import Slips, count_slips, hard_sentences, robustness, summed


@pytest.mark.parametrize(
    ("text", "heard", "slips"),
    [
        ("The cat sat on the mat.", "the cat sat on the mat", Slips(0, 0)),
        ("The cat sat on the mat.", "the cat cat sat on the mat", Slips(1, 0)),
        ("The cat sat on the mat.", "the cat on the mat", Slips(0, 1)),
        ("The cat sat on the mat.", "the bat sat on the mat", Slips(0, 0)),
        ("The cat sat on the mat.", "the cat sat really on the mat", Slips(0, 0)),
        ("The cat sat.", "the cat the cat sat", Slips(2, 0)),
        ("No no no, never.", "no no no no no never", Slips(2, 0)),
        ("No no no, never.", "never", Slips(0, 3)),
        ("The code is 7 7 7.", "The code is 777.", Slips(0, 0)),
        ("The code is 7 7 7.", "The code is 77.", Slips(0, 1)),
        ("A B C, then go.", "ABC, then go", Slips(0, 0)),
        ("Wait.", "", Slips(0, 1)),
        ("At eight we left.", "at eight" + " eight" * 99 + " we left", Slips(4, 0)),
    ],
)
def test_counts_what_was_said_twice_and_what_was_left_out(text, heard, slips):
    assert count_slips(text, heard) == slips and slips.any == (slips != Slips(0, 0))


def test_the_table_adds_sentences_up():
    table = summed([Slips(0, 0), Slips(2, 0), Slips(1, 3), Slips(0, 0)])
    assert (table.repeats, table.skips, table.sentences, table.error_rate) == (3, 3, 2, 0.5)
    with pytest.raises(UserError, match="there are none"):
        summed([])
    with pytest.raises(UserError, match="no words"):
        count_slips("...", "hello")


def test_fifty_sentences_all_different_and_all_with_words():
    sentences = hard_sentences()
    assert len(sentences) == len(set(sentences)) == 50 and all(normalise(one) for one in sentences)
    assert any(any(c.isdigit() for c in one) for one in sentences)
    assert all(count_slips(one, one) == Slips(0, 0) for one in sentences)


def test_a_voice_is_heard_by_a_recogniser():
    class Echo:
        def synthesize(self, text):
            return text

        def transcribe_all(self, said):
            return [said[0], "one"]

    found = robustness(Echo(), Echo(), ["one two", "one two"])
    assert (found.skips, found.repeats, found.error_rate) == (1, 0, 0.5)
