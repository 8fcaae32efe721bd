"""espeak-ng's own voice, without its program."""

import numpy as np
import pytest

from vitalk.errors import UserError
from vitalk.speech.peers import files_of, open_voice
from vitalk.speech.synthesizer import Prompt
from vitalk.speech.text.phonemes import Phonemizer


@pytest.fixture(scope="module")
def espeak():
    return open_voice("espeak")


def test_it_speaks_and_repeats_itself(espeak):
    audio = espeak.synthesize("Hello there, how are you?")
    assert audio.rate == espeak.rate and 0.8 < audio.seconds < 3 and audio.rms() > -40
    assert np.abs(audio.samples).max() <= 1
    assert espeak.synthesize("Hello there, how are you?").seconds == pytest.approx(audio.seconds, rel=0.02)


def test_it_reads_numbers_and_each_sentence_comes_alone(espeak):
    assert espeak.synthesize("1999").seconds > 2 * espeak.synthesize("9").seconds
    parts = list(espeak.stream("One. Two. … Three."))
    assert len(parts) == 3
    pause = int(0.3 * espeak.rate)
    assert not parts[1].samples[:pause].any() and parts[0].samples[:pause].any()
    whole = espeak.synthesize("One. Two. … Three.")
    assert whole.seconds == pytest.approx(sum(part.seconds for part in parts), rel=0.02)


def test_speed_and_language_are_followed_and_forgotten(espeak):
    plain = espeak.synthesize("A quiet day at the sea.")
    slow = espeak.synthesize("A quiet day at the sea.", Prompt(speed=0.5))
    assert slow.seconds == pytest.approx(2 * plain.seconds, rel=0.25)
    german = espeak.synthesize("A quiet day at the sea.", Prompt(lang="de"))
    assert abs(german.seconds / plain.seconds - 1) > 0.05
    again = espeak.synthesize("A quiet day at the sea.")
    assert again.seconds == pytest.approx(plain.seconds, rel=0.02)


def test_the_phonemizer_is_not_disturbed(espeak):
    phonemizer = Phonemizer("en-us")
    before = phonemizer.phonemes("Hello, world!")
    espeak.synthesize("Guten Tag.", Prompt(lang="de", speed=2))
    assert phonemizer.phonemes("Hello, world!") == before == "həlˈoʊ, wˈɜːld!"


@pytest.mark.parametrize("text", ["", " \n", "?!", "\0"])
def test_nothing_to_say(espeak, text):
    with pytest.raises(UserError, match=r"nothing to say in .* en-us"):
        espeak.synthesize(text)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt(pitch=2), "the voice espeak cannot follow a prompt with pitch"),
        (Prompt(speaker="anna"), "cannot follow a prompt with speaker"),
        (Prompt(speed=9), "speed must be from 0.5 to 2.5, got 9"),
        (Prompt(lang="klingon"), "klingon"),
    ],
)
def test_prompts_that_it_cannot_follow(espeak, prompt, message):
    with pytest.raises(UserError, match=message):
        espeak.synthesize("Hello.", prompt)


def test_its_files_are_those_of_english():
    assert {path.name for path in files_of("espeak")} >= {"phondata", "en_dict"}
    assert all(path.is_file() for path in files_of("espeak"))
