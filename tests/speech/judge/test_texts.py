"""What voices are asked to say."""

import re

import pytest

from vitalk.errors import UserError
from vitalk.speech.judge.recogniser import normalise
from vitalk.speech.judge.texts import SENTENCES, read_texts


def test_the_bundled_sentences_are_a_hundred_of_everyday_length():
    texts = [text for _, text in read_texts()]
    assert len({normalise(text) for text in texts}) == len(texts) == 100
    assert all(4 <= len(text.split()) <= 30 and text[-1] in ".?!" for text in texts)
    assert 5 <= sum(bool(re.search(r"\d", text)) for text in texts) <= 15
    assert sum(text.endswith("?") for text in texts) >= 15
    assert read_texts()[0][0] == "001" and SENTENCES.read_bytes().decode("utf-8").endswith("\n")


@pytest.mark.data
def test_no_bundled_sentence_is_in_the_corpus(kokoro):
    corpus = {normalise(text) for rows in kokoro.values() for _, text in rows}
    assert not corpus & {normalise(text) for _, text in read_texts()}
    everything = "\n".join(corpus)
    assert not [text for _, text in read_texts() if normalise(text) in everything]


def test_lists_of_ones_own(tmp_path):
    (tmp_path / "list.txt").write_text("\ufeffOne here.\r\n\r\n  Two here. \n", encoding="utf-8")
    assert read_texts(tmp_path / "list.txt", "de") == [("001", "One here."), ("002", "Two here.")]
    (tmp_path / "metadata.csv").write_text("a|Dr. One|Doctor One\nb|Two\n")
    assert read_texts(tmp_path / "metadata.csv") == [("a", "Doctor One"), ("b", "Two")]
    (tmp_path / "metadata.jsonl").write_text('{"id": 7, "text": "Seven", "phonemes": "sˈɛvən"}\n')
    assert read_texts(str(tmp_path / "metadata.jsonl")) == [("7", "Seven")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.txt", b" \n\n", r"list\.txt lists no texts; write one sentence a line"),
        ("list.txt", b"\xff\xfe", "is no UTF-8 text"),
        ("list.txt", None, r"there is no file .*list\.txt"),
        ("list.csv", b"", "lists no texts"),
        ("list.csv", b"only words\n", r"line 1 of .* is not id\|text"),
    ],
)
def test_bad_lists_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_texts(tmp_path / name)


def test_other_languages_need_a_list():
    assert len(read_texts(lang="en_GB")) == 100
    with pytest.raises(UserError, match="bundled sentences are English; give a list of sentences in es with --text"):
        read_texts(lang="es")
