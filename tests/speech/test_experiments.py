"""What reproductions on speech share: batches of all lengths, errors of mels."""

import numpy as np
import pytest
import torch

from vitalk.speech.acoustic.training import AcousticTraining
from vitalk.speech.experiments import mel_error, some
from vitalk.speech.features import Speech


@pytest.fixture(scope="module")
def corpus(hums, tmp_path_factory):
    data = Speech(str(hums), cache=str(tmp_path_factory.mktemp("cache")), workers=0, held_out=0.25, batch_frames=200)
    data.setup()
    return data


def test_batches_are_taken_from_all_lengths(corpus, monkeypatch):
    monkeypatch.setitem(corpus.hparams, "batch_frames", 1)  # each clip is a batch of its own
    lengths = [int(batch["mel_lengths"]) for batch in some(corpus, "train", 3)]
    assert len(lengths) == 3 and lengths == sorted(lengths)
    assert lengths[0] == corpus.frames["train"].min() and lengths[-1] > np.median(corpus.frames["train"])


class Louder(AcousticTraining):
    """Says what it heard at another level, and anything behind its end."""

    def build(self, f0, energy):
        raise AssertionError

    def losses(self, batch):
        return {}

    def mel(self, batch):
        inside = torch.arange(batch["mel"].shape[2]) < batch["mel_lengths"][:, None]
        return torch.where(inside[:, None], batch["mel"] + 0.5, 9.0)


@pytest.mark.parametrize("part", ["train", "test"])
def test_errors_are_of_what_is_no_padding(corpus, part):
    assert mel_error(Louder(corpus.n_symbols), corpus, part) == pytest.approx(0.5, abs=1e-5)
