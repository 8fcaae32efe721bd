"""New voices: where they are kept, and sentences that are enough for them."""

import json

import pytest

from vitalk.errors import UserError
from vitalk.speech.acoustic.adapting import one_voice, voice_file, voice_files


def test_a_voice_is_named_by_its_folder_or_speaker(tmp_path):
    told = {"model": tmp_path / "model.safetensors", "folder": tmp_path / "anna", "speakers": ["s0"]}
    assert voice_file(**told, output=None, speaker=None) == tmp_path / "voices" / "anna.safetensors"
    assert voice_file(**told, output=None, speaker="bert").stem == "bert"
    assert voice_file(**told, output=tmp_path / "x.safetensors", speaker="bert") == tmp_path / "x.safetensors"
    for output, speaker in ((None, "s0"), (tmp_path / "s0.safetensors", None), (tmp_path / "anna.onnx", None)):
        with pytest.raises(UserError, match="is no name for a new voice"):
            voice_file(**told, output=output, speaker=speaker)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to; choose another place"):
        voice_file(**told, output=tmp_path / "file" / "x.safetensors", speaker=None)
    assert not (tmp_path / "voices").exists()


def test_voices_beside_a_model_have_names_of_their_own(tmp_path):
    assert voice_files(tmp_path / "model.safetensors", ["s0"]) == []
    (tmp_path / "voices").mkdir()
    made = [tmp_path / "voices" / f"{name}.safetensors" for name in ("anna", "bert")]
    for path in reversed(made):
        path.touch()
    assert voice_files(tmp_path / "model.safetensors", ["s0"]) == made
    with pytest.raises(UserError, match=r"the model has a speaker bert of its own; rename .*bert\.safetensors"):
        voice_files(tmp_path / "model.safetensors", ["s0", "bert"])


def test_sentences_of_one_voice(hums, tmp_path):
    found = one_voice(hums, "s1", "20 are enough")
    assert (found["path"], found["speakers"]) == (str(hums), ["s1"]) and 0 < found["held_out"] < 0.1
    with pytest.raises(UserError, match=r"has 2 speakers \(s0, s1\); choose one with --speaker"):
        one_voice(hums, None, "20 are enough")
    with pytest.raises(UserError, match="has no speaker bert"):
        one_voice(hums, "bert", "20 are enough")
    rows = (hums / "metadata.jsonl").read_text().splitlines()
    (tmp_path / "metadata.jsonl").write_text(json.dumps({**json.loads(rows[0]), "speaker": "anna"}))
    (tmp_path / "wavs").symlink_to(hums / "wavs")
    with pytest.raises(UserError, match="has one sentence of the voice; record more, 20 are enough"):
        one_voice(tmp_path, None, "20 are enough")
