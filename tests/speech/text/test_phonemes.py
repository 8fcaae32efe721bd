"""espeak's phonemes, against those that the corpus was made with."""

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.measurement import checkout
from vitalk.speech.text.phonemes import Phonemizer, _wrapper, language, languages

PHONEMIZER = Phonemizer()


@pytest.mark.data
def test_the_corpus_phonemises_to_its_own_phonemes():
    root = Path(os.environ.get("VITALK_DATA") or checkout().parent / "shared" / "data")
    metadata = root / "speech" / "kokoro_en" / "metadata.jsonl"
    if not metadata.is_file():
        pytest.skip("no data root")
    rows = [json.loads(line) for line in metadata.read_text("utf-8").splitlines()][::5]
    found = PHONEMIZER.phonemes_of(row["text"] for row in rows)
    same = [one == " ".join(row["phonemes"].split()) for one, row in zip(found, rows, strict=True)]
    assert sum(same) / len(same) > 0.995


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        (
            "Some condemned convicts converse but little with the warders.",
            "sˌʌm kəndˈɛmd kˈɑːnvɪkts kˈɑːnvɜːs bˌʌt lˈɪɾəl wɪððə wˈɔːɹdɚz.",
        ),
        ("To them I say: no!", "tə ðˌɛm aɪ sˈeɪ: nˈoʊ!"),
        ("", ""),
        ("...", "…"),
        ("😀", ""),
        ("\x00a\ud800", "ˈeɪ"),
    ],
)
def test_phonemes(text, phonemes):
    assert PHONEMIZER.phonemes(text) == phonemes


@pytest.mark.parametrize(("letters", "word"), [("F-B-I", "FBI"), ("U-S", "US"), ("P-M", "PM"), ("N-R-A", "NRA")])
def test_letters_sound_as_espeak_says_them(letters, word):
    assert PHONEMIZER.phonemes(f"the {letters} then") == PHONEMIZER.phonemes(f"the {word} then")


def test_other_languages_without_flags():
    french = Phonemizer("fr-FR").phonemes("j'aime le football.")
    assert french.endswith(".") and "(" not in french and "f" in french
    assert Phonemizer("hi").phonemes("नमस्ते hello").isascii() is False


def test_foreign_letters_are_left_out_not_named():
    assert PHONEMIZER.phonemes("你好 hello ᚠ") == PHONEMIZER.phonemes("hello")
    assert Phonemizer("cmn").phonemes("你好")


def test_a_lexicon_replaces_words_and_leaves_the_rest_in_context():
    given_ = Phonemizer(lexicon={"Tomato": "təmˈɑːtoʊ", "GPT4": "dʒˌiːpiːtiːfˈɔːɹ"})
    assert given_.phonemes("An apple, the TOMATO of the apple.") == PHONEMIZER.phonemes(
        "An apple, the tomato of the apple."
    ).replace("təmˈeɪɾoʊ", "təmˈɑːtoʊ")
    assert given_.phonemes("GPT4!") == "dʒˌiːpiːtiːfˈɔːɹ!"
    assert given_.phonemes("tomatoes") == PHONEMIZER.phonemes("tomatoes")
    the = Phonemizer(lexicon={"of": "ɒv"})  # espeak runs "of the" together
    assert the.phonemes("end of the day") == "ˈɛnd ɒv ðə dˈeɪ"


def test_lexicon_files(tmp_path):
    (tmp_path / "a.tsv").write_text("# names\nXyzzy\tzˈɪzi\nfoo  fˈuː\n\n")
    (tmp_path / "a.json").write_text(json.dumps({"xyzzy": "zˈɪzi"}))
    for name in ("a.tsv", "a.json"):
        assert Phonemizer(lexicon=tmp_path / name).phonemes("XYZZY.") == "zˈɪzi."


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "word\n", "line 1 of the lexicon .* has no phonemes"),
        ("a.json", "[1]", "one JSON object"),
        ("a.json", "{", "is no JSON"),
        ("a.json", '{"a": 1}', "must map words to phonemes"),
        ("a.json", '{"a b": "a"}', "one by one"),
        ("a.txt", "a 漢\n", "no IPA"),
        ("a.txt", b"\xff\xfe\xff", "no UTF-8"),
    ],
)
def test_bad_lexicons_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        Phonemizer(lexicon=tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        Phonemizer(lexicon=tmp_path / "none.txt")


def test_languages_are_those_that_espeak_lists_and_has_a_dictionary_for():
    listed = {voice.language: voice.name.strip() for voice in reversed(_wrapper().available_voices())}
    assert languages().items() <= listed.items() and len(listed) - len(languages()) <= 3


def test_languages():
    assert languages()["en-us"] == "English (America)" and len(languages()) > 100
    assert [language(code) for code in ("en", "de-DE", "fr_FR", "zh", "pt-BR")] == [
        "en-us",
        "de",
        "fr-fr",
        "cmn",
        "pt-br",
    ]
    with pytest.raises(UserError, match="does not speak the language 'xx-yy'"):
        Phonemizer("xx-yy")
    with pytest.raises(UserError, match="Did you mean"):
        Phonemizer("german")


@pytest.mark.parametrize(
    ("lang", "text"),
    [("cmn", "你好世界"), ("th", "สวัสดีชาวโลก"), ("ja", "こんにちは"), ("en-us", "banana"), ("ko", "안녕")],
)
def test_nothing_is_lost_in_scripts_without_spaces(lang, text):
    phonemizer = Phonemizer(lang)
    assert len(phonemizer.phonemes(text * 90)) > 0.95 * 9 * len(phonemizer.phonemes(text * 10))


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_text_is_one_line(text):
    assert "\n" not in PHONEMIZER.phonemes(text)


def test_threads_share_one_espeak():
    texts = ["one two three", "four, five", "six seven eight nine"] * 5
    wanted, found = PHONEMIZER.phonemes_of(texts), {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: PHONEMIZER.phonemes_of(texts)})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[i] == wanted for i in range(4))
