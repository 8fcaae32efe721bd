"""From text to symbol ids, sentence by sentence."""

import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.speech.text.front import CLAUSE, Front
from vitalk.speech.text.ssml import PARAGRAPH, SENTENCE
from vitalk.speech.text.symbols import to_ids

FRONT = Front()


def test_sentences_come_with_phonemes_ids_and_pauses():
    first, second, third = FRONT.utterances("Hello, Dr. Smith. It costs $5!\n\nBye.")
    assert first.phonemes == "həlˈoʊ, dˈɑːktɚ smˈɪθ." and first.ids == to_ids(f" {first.phonemes} ")
    assert [u.text for u in (first, second, third)] == ["Hello, Dr. Smith.", "It costs $5!", "Bye."]
    assert [u.pause for u in (first, second, third)] == [SENTENCE, PARAGRAPH, 0.0]


def test_parts_of_long_sentences_pause_less():
    assert next(FRONT.utterances("word, " * 200)).pause == CLAUSE


def test_no_utterance_grows_beyond_what_can_be_synthesised():
    found = list(FRONT.utterances("7" * 2_000 + " 12345 " * 500))
    assert all(len(u.phonemes) < 1_000 for u in found)
    assert sum(u.phonemes.count("sˈɛvən") for u in found) >= 1_990


@pytest.mark.parametrize("text", ["", " \n", "...!?", "😀👍", "\x00\u200b", "你好", "—"])
def test_nothing_to_say(text):
    with pytest.raises(UserError, match="there is nothing to say in"):
        list(FRONT.utterances(text))


@pytest.mark.parametrize("text", ["<speak/>", '<break time="1s"/>', "<p>!</p>"])
def test_nothing_to_say_in_ssml(text):
    with pytest.raises(UserError, match="there is nothing to say in"):
        list(FRONT.utterances(text, ssml=True))


def test_mixed_scripts_are_spoken_as_far_as_they_can_be():
    (one,) = FRONT.utterances("Say 你好 to me 😀\x07")
    assert one.phonemes == next(FRONT.utterances("Say to me")).phonemes


def test_ssml_keeps_manner_and_explicit_pauses():
    first, second, third = FRONT.utterances(
        'Hello.<break time="2s"/> <prosody rate="fast" pitch="+12st" volume="loud">Quick.</prosody> End.', ssml=True
    )
    assert (first.pause, second.rate, second.pitch, second.volume, third.rate) == (2.0, 1.25, 2.0, 6.0, 1.0)


def test_given_phonemes_stand_in_their_sentence():
    (one,) = FRONT.utterances('I say <phoneme ph="pəˈteɪtəʊ">potato</phoneme>, 2 times.', ssml=True)
    assert one.text == "I say potato, 2 times." and "pəˈteɪtəʊ, tˈuː tˈaɪmz." in one.phonemes


def test_other_languages_inside():
    first, second = FRONT.utterances('Hello <lang xml:lang="de">Guten Tag 3</lang>', ssml=True)
    assert second.phonemes == next(Front("de").utterances("Guten Tag 3")).phonemes != first.phonemes


def test_a_pause_may_come_first():
    first, second = FRONT.utterances('<break time="1s"/>Hello', ssml=True)
    assert (first.ids, first.pause) == ([], 1.0) and second.ids


def test_lexicon_words_are_found_before_and_after_normalisation():
    front = Front(lexicon={"GPT4": "dʒˈiː", "doctor": "dˈɒk"})
    assert next(front.utterances("GPT4 and Dr. X")).phonemes.startswith("dʒˈiː ænd dˈɒk")


@given(st.text(max_size=80), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_text_gives_utterances_or_a_user_error(text, ssml):
    try:
        found = list(FRONT.utterances(text, ssml))
    except UserError:
        return
    assert any(u.ids for u in found) and found[-1].pause >= 0


def test_a_megabyte_starts_at_once():
    start = time.process_time()
    first = next(FRONT.utterances("It was 5 o'clock on a cold day in April. " * 25_000))
    assert first.ids and time.process_time() - start < 3


def test_no_torch():
    code = (
        "import sys\nfor name in ('torch', 'timm', 'lightning'): sys.modules[name] = None\n"
        "from vitalk.speech.text import Front\nprint(next(Front().utterances('Hi.')).phonemes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "hˈaɪ.", done.stderr


LEXICON = Front(lexicon={"GPT4": "dʒˈiː", "com": "kˈɒm", "a": "ə", "5": "fˈaɪf", "dr": "dˈɒk"})
WORDS = st.sampled_from(["GPT4", "com", "Dr.", "https://", "www.", *"a 5.@#$/-1:,'x"])


@given(st.lists(WORDS, max_size=15).map("".join))
@settings(max_examples=150, deadline=None)
def test_given_phonemes_survive_every_rule(text):
    try:
        found = list(LEXICON.utterances(text))
    except UserError:
        return
    assert all(u.ids and "\ue000" not in u.text + u.phonemes for u in found)
