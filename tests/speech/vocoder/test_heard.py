"""Vocoders tuned on the mels of acoustic models: what is kept, and that it fits the waves."""

import numpy as np
import pytest
import torch

from tests.speech.vocoder.test_data import trainer
from vitalk.errors import UserError
from vitalk.speech.features import Speech
from vitalk.speech.mel import PRESETS, log_mel
from vitalk.speech.vocoder.heard import HeardSegments, mel_path, write_mels
from vitalk.speech.vocoder.training import VocoderTraining

SEGMENT = 3000


@pytest.fixture(scope="module")
def speech(hums, tmp_path_factory):
    data = Speech(str(hums), cache=str(tmp_path_factory.mktemp("features")), workers=0, held_out=0.25, batch_frames=400)
    data.setup()
    return data


@pytest.fixture(scope="module")
def mels(speech, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mels")
    assert write_mels(lambda batch: batch["mel"], speech, folder) == 8
    return folder


def heard(hums, mels, cache, **options):
    settings = {"workers": 0, "segment": SEGMENT, "batch_size": 2, "hold_out": 0.25} | options
    data = HeardSegments(str(mels), str(hums), cache=str(cache), **settings)
    data.trainer = trainer()
    data.prepare_data()
    data.setup()
    return data


def test_a_stopped_run_goes_on_where_it_was(speech, mels):
    first = sorted(mels.iterdir())[0]
    before = {path: path.stat().st_mtime_ns for path in mels.iterdir()}
    first.unlink()
    made = write_mels(lambda batch: batch["mel"], speech, mels)
    assert 1 <= made <= 8 and first.is_file() and before.keys() == set(mels.iterdir())


@pytest.mark.parametrize("gain", [0.0, 6.0])
def test_mels_fit_their_waves(hums, mels, tmp_path, gain):
    data = heard(hums, mels, tmp_path, gain=gain)
    spec = PRESETS["vitalk"]
    count = 0
    for batch in data.train_dataloader():
        given = data.on_after_batch_transfer(batch, 0)
        assert given["wave"].shape[1] == SEGMENT and given["heard"].shape[1:] == (80, SEGMENT // spec.hop)
        inner = slice(2, -2)  # the ends of a segment are reflected, those of the recording are not
        found = log_mel(given["wave"], spec)[..., inner]
        loud = found > -6
        assert (found - given["heard"][..., inner]).abs()[loud].mean() < 0.05
        count += 1
    assert count > 3


def test_a_vocoder_hears_them(hums, mels, tmp_path):
    model = VocoderTraining(generator_args={"dim": 16, "intermediate": 32, "layers": 1})
    wave = torch.randn(2, SEGMENT) / 10
    told = torch.randn(2, 80, SEGMENT // 300)
    assert torch.equal(model._target({"wave": wave, "heard": told}).mel, told)
    plain, both = model._target(wave), model._target({"wave": wave, "heard": told})
    assert torch.equal(plain.full, both.full) and not torch.equal(plain.mel, both.mel)


def test_what_does_not_fit_is_refused(hums, mels, tmp_path):
    with pytest.raises(UserError, match="give a multiple of 300"):
        heard(hums, mels, tmp_path, segment=3100)
    with pytest.raises(UserError, match="make them with vitalk mels"):
        heard(hums, tmp_path / "none", tmp_path)
    short = np.load(mel_path(mels, "0"))
    assert short.dtype == np.float16 and short.shape[0] == 80
