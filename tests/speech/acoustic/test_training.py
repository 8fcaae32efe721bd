"""What the trainings of acoustic models have in common: hyperparameters, refusals, voices of trained networks."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vitalk.errors import UserError
from vitalk.files import write_tensors
from vitalk.speech.acoustic.training import AcousticTraining, ForVoice, load_module
from vitalk.training import arguments_of


class Training(AcousticTraining):
    """A training with an argument of its own and a default that is another."""

    FORMAT, NAME = "vitalk nothing", "Nothing"

    def __init__(self, n_symbols, n_speakers=1, variant="paper", lr=2e-4, **options):
        super().__init__(n_symbols, n_speakers, lr=lr, **options)

    def build(self, f0, energy):
        self.net = nn.Linear(1, 1)
        return self.net

    def losses(self, batch):
        return {}

    def mel(self, batch):
        return batch["mel"]


def test_arguments_are_kept_wherever_they_are_named():
    module = Training(9, 2, clip=0.5, weights={"mel": 2.0})
    found = arguments_of(module)
    assert found == {
        "n_symbols": 9, "n_speakers": 2, "variant": "paper", "model_args": None, "mel": "vitalk", "lr": 2e-4,
        "schedule": "noam", "warmup_steps": 4000, "min_lr": 1e-5, "betas": (0.9, 0.98), "clip": 0.5,
        "weights": {"mel": 2.0},
    }  # fmt: skip
    assert arguments_of(Training(**found)) == found


def test_kept_and_loaded_it_is_the_same(tmp_path):
    module = Training(9, lr=1e-2)
    module.build(None, None)
    data = SimpleNamespace(speakers=["ann"], hparams=SimpleNamespace(lang="en-us"), symbols=lambda: "ab")
    module.save_weights(tmp_path / "model.safetensors", data)
    found, about = load_module(tmp_path / "model.safetensors", Training)
    assert found.hparams.lr == 1e-2 and torch.equal(found.net.weight, module.net.weight) and not found.training
    assert about == {"mel": "vitalk", "lang": "en-us", "speakers": ["ann"], "symbols": "ab",
                     "follows": ["speed", "pitch", "energy"]}  # fmt: skip


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="no trained model at"):
        load_module(tmp_path / "none.safetensors", Training)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        load_module(tmp_path / "bad.safetensors", Training)
    write_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {"format": "vitalk other"})
    with pytest.raises(UserError, match=r"other\.safetensors holds no Nothing; give the model\.safetensors"):
        load_module(tmp_path / "other.safetensors", Training)


def test_data_without_durations_is_refused():
    durations = torch.ones(1, 2)
    assert Training(9).durations_of({"durations": durations}) is durations
    with pytest.raises(UserError, match="the data has no durations; train an aligner"):
        Training(9).durations_of({})


@pytest.mark.parametrize(
    ("follows", "told"),
    [
        (AcousticTraining.FOLLOWS, {"speed": 2.0, "pitch_factor": 3.0, "energy_factor": 4.0}),
        (("speed",), {"speed": 2.0}),
        ((), {}),
    ],
)
def test_a_voice_tells_the_network_what_it_follows(follows, told):
    class Net(nn.Module):
        speakers = nn.Embedding(2, 1)

        def forward(self, ids, speaker=None, **factors):
            self.heard = speaker, factors
            return SimpleNamespace(mel=ids + 1, durations=ids)

    net, speaker = Net(), torch.tensor([1])
    mel, durations = ForVoice(net, follows)(torch.tensor([[5]]), speaker, 2.0, 3.0, 4.0)
    assert net.heard == (speaker, told) and (int(mel), int(durations)) == (6, 5)
    Net.speakers = None
    for alone, heard in ((None, None), (False, speaker)):
        ForVoice(net, follows, alone)(torch.tensor([[5]]), speaker, 2.0, 3.0, 4.0)
        assert net.heard == (heard, told)
