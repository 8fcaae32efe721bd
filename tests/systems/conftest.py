"""Corpora, recordings and vocoders with which acoustic systems are tried."""

import numpy as np
import pytest
import soundfile
import torch

from vitalk.files import data_root
from vitalk.speech.align.training import AlignerTraining
from vitalk.speech.features import Speech
from vitalk.speech.mel import mel_spec
from vitalk.speech.vocoder.generators import create, save_vocoder


@pytest.fixture(scope="session")
def aligned(hums, tmp_path_factory):
    """Makes a corpus of hums, told arguments of ``Speech``, whose durations are an untrained aligner's."""

    def make(**options):
        told = {"path": str(hums), "workers": 0, "held_out": 0.25, "batch_frames": 400, **options}
        data = Speech(**{"cache": str(tmp_path_factory.mktemp("cache")), **told})
        data.setup()
        torch.manual_seed(0)
        data.use(AlignerTraining(data.n_symbols, text_dim=8, dim=8).eval())
        return data

    return make


@pytest.fixture
def anna(tmp_path):
    """Four hums of a new voice as LJSpeech has them: 96 kHz, stereo."""
    folder = tmp_path / "anna"
    (folder / "wavs").mkdir(parents=True)
    rows = []
    for i in range(4):
        time = np.arange(int((0.5 + 0.1 * i) * 96_000)) / 96_000
        tones = sum(np.sin(2 * np.pi * (220 + 10 * i) * k * time) / k for k in range(1, 20))
        soundfile.write(folder / "wavs" / f"{i}.wav", np.stack([0.2 * tones, 0.1 * tones], 1), 96_000)
        rows.append(f"{i}|Hum|hum")
    (folder / "metadata.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture
def vocoder(tmp_path):
    """Makes the model.safetensors of a small Vocos for mels of a preset."""

    def make(mel="vitalk"):
        path, sizes = tmp_path / f"vocoder-{mel}.safetensors", {"dim": 16, "intermediate": 32, "layers": 1}
        save_vocoder(path, create("vocos", mel_spec(mel), sizes), "vocos", sizes, mel)
        return path

    return make


@pytest.fixture
def kokoro(monkeypatch, tmp_path):
    """The data root, whose kokoro_en a claim is measured on; skips where it is not there."""
    if not (data_root() / "speech" / "kokoro_en").is_dir():
        pytest.skip(f"no kokoro_en in {data_root()}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return data_root()
