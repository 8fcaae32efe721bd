"""The table that trained weights depend on."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.speech.text.phonemes import Phonemizer, languages
from vitalk.speech.text.symbols import SIZE, SYMBOLS, adapted, to_ids, to_phonemes, unknown

SAMPLE = (
    "0 1 2 3 4 5 6 7 8 9 12 35 100 abcdefghijklmnopqrstuvwxyz "
    "the quick brown fox ö ü ß é à ñ ç ø å ł č ž ő привет नमस्ते مرحبا 你好"
)


FIRST, FINGERPRINT = 266, "6599fa18a61bbda0"  # symbols that weights have been trained with, and their hash


def test_the_order_never_changes():
    assert SYMBOLS[0] == "_" and SYMBOLS[1:5] == (";", ":", ",", ".")
    assert hashlib.sha256("".join(SYMBOLS[:FIRST]).encode()).hexdigest()[:16] == FINGERPRINT


def test_symbols_are_single_and_leave_room():
    assert len(set(SYMBOLS)) == len(SYMBOLS) < SIZE and all(len(symbol) == 1 for symbol in SYMBOLS)


@given(st.text(st.sampled_from(SYMBOLS[1:])))
@settings(deadline=None)
def test_ids_come_back(phonemes):
    assert not unknown(phonemes)
    assert to_ids(to_phonemes(to_ids(phonemes))) == to_ids(phonemes)


def test_unknown_characters_are_dropped_and_named():
    assert to_phonemes(to_ids("h漢ə語漢!")) == "hə!" and unknown("h漢ə語漢!") == "漢語"


def test_composed_letters_are_letter_and_mark():
    assert to_phonemes(to_ids("ɑ̃ ã ç")) == "ɑ̃ a\u0303 ç" and not unknown("ã õ ũ ĩ ẽ ä")


LANGS = "am ar bg cmn cs da de es fr-fr hi hu is it ko lb pl pt-br ru sv ta tr vi yue"


@pytest.mark.parametrize("lang", LANGS.split())
def test_what_espeak_says_is_in_the_table(lang):
    assert lang in languages() and not unknown(Phonemizer(lang).phonemes(SAMPLE))


KNOWN = set("abdhilmnostʌɪə ,.?ˈ")


@pytest.mark.parametrize(
    ("phonemes", "spoken"),
    [
        ("mˈaɪ, dɪd? nˈo.", "mˈaɪ, dɪd? nˈo."),
        ("sˈo — hɪ (ˈalmost) dɪd; nˈo!", "sˈo, hɪ, ˈalmost, dɪd, nˈo."),
        ("(dɪd) nˈo (mˈaɪbi).", "dɪd nˈo, mˈaɪbi.".replace("dɪd ", "dɪd, ")),
        ("— hɪ… mˈo?!", "hɪ. mˈo."),
        ("ɪç dˈø", "ɪh dˈ"),
        ("«nˈo»", "nˈo"),
        ("ǀǂ", ""),
    ],
)
def test_symbols_a_voice_never_met_become_the_nearest_it_knows(phonemes, spoken):
    assert adapted(phonemes, KNOWN) == spoken


@given(st.text(st.sampled_from(SYMBOLS[1:])))
def test_what_is_adapted_is_known(phonemes):
    assert set(adapted(phonemes, KNOWN)) <= KNOWN
    assert adapted(phonemes, SYMBOLS) == phonemes
