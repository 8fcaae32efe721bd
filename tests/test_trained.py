"""Every acoustic system's trained model: its mels of recordings, and what its voice says it follows."""

from importlib import import_module

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from vitalk.cli import app
from vitalk.errors import UserError
from vitalk.recipes import load_recipe
from vitalk.speech.align.training import AlignerTraining
from vitalk.speech.features import Speech
from vitalk.systems.usat.data import PairedSpeech
from vitalk.trained import load_training, trained_voice

FOLLOWS = {
    "fastspeech2": ("speed", "pitch", "energy"), "adaspeech": ("speed", "pitch", "energy"),
    "delightfultts": ("speed", "pitch", "energy"), "portaspeech": ("speed", "energy"), "usat": ("speed", "energy"),
    "fastspeech": ("speed",), "transformer-tts": (),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(hums, tmp_path_factory):
    """(The tiny model of each system, untrained, by slug; the aligner of their data)."""
    root = tmp_path_factory.mktemp("runs")
    options = {"path": str(hums), "cache": str(root / "cache"), "workers": 0, "held_out": 0.25}
    torch.manual_seed(0)
    kept = {}
    for slug in FOLLOWS:
        _, config = load_recipe(slug, "tiny")
        told, mel = config["model"]["init_args"], config["data"]["init_args"].get("mel", "vitalk")
        data = (PairedSpeech if slug == "usat" else Speech)(mel=mel, **options)
        data.setup()
        module, _, name = config["model"]["class_path"].rpartition(".")
        made = getattr(import_module(module), name)(data.n_symbols, data.n_speakers, **{"mel": mel, **told})
        made.build(*data.spreads())
        made.save_weights(root / slug / "model.safetensors", data)
        kept[slug] = root / slug
    aligner = AlignerTraining(data.n_symbols, text_dim=8, dim=8)
    aligner.save_weights(root / "aligner.safetensors", data)
    return kept, root / "aligner.safetensors"


@pytest.mark.parametrize("slug", FOLLOWS)
def test_the_mels_of_a_corpus_are_kept_whatever_the_system(slug, runs, hums, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept, aligner = runs
    command = ["mels", str(kept[slug]), "--aligner", str(aligner), "--data", str(hums), "-o", str(tmp_path / "mels")]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0 and "8 mels made, 8 in all" in done.output
    mels = [np.load(path) for path in sorted((tmp_path / "mels").glob("*.npy"))]
    assert len(mels) == 8 and all(len(mel) == 80 and np.isfinite(mel).all() for mel in mels)
    lengths = sorted(mel.shape[1] for mel in mels)
    assert len(set(lengths)) == 8 and lengths[-1] > 2 * lengths[0]  # as the recordings, of 0.4 to 1.1 s
    again = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "0 mels made" in again.output


@pytest.mark.parametrize("slug", FOLLOWS)
def test_voices_refuse_what_their_system_does_not_follow(slug, runs):
    voice = trained_voice(runs[0][slug])
    assert voice.follows == FOLLOWS[slug]
    for name in ("speed", "pitch", "energy"):
        if name in FOLLOWS[slug]:
            voice.check({name: 1.2})
        else:
            with pytest.raises(UserError, match=rf"cannot change its {name}, got 1\.2; leave it out"):
                voice.check({name: 1.2})


def test_ssml_that_a_voice_cannot_follow_is_refused(runs):
    voice = trained_voice(runs[0]["fastspeech"])
    with pytest.raises(UserError, match="cannot change its pitch"):
        voice.speak('<speak><prosody pitch="+20%">Hum.</prosody></speak>', ssml=True)


def test_what_is_no_acoustic_model(runs, tmp_path):
    with pytest.raises(UserError, match="is no acoustic model"):
        load_training(runs[1])
    with pytest.raises(UserError, match="train first"):
        load_training(tmp_path)
