"""HiFi-GAN against the official generator and transformers' own."""

import pytest
import torch

from tests.parity import parity
from tests.speech.vocoder.fixtures import FOLDER, count, given_inputs, official_state
from vitalk.errors import UserError
from vitalk.speech.vocoder.hifigan import SIZES, HifiGan, from_official, remove_weight_norm


@pytest.fixture
def small():
    """(fixture, model with its weights, mel)."""
    loaded = parity.load(FOLDER / "hifi-gan.small_v1.json")
    model = HifiGan(80, 64, (4, 4, 2), (8, 8, 4))
    model.load_state_dict(from_official({"generator": official_state(loaded)}))
    return loaded, model, given_inputs(loaded, "mel")


@torch.no_grad()
def test_agrees_with_the_official_generator(small):
    loaded, model, mel = small
    net, expected = model.upsampler.net, loaded["outputs"]
    first = net.upsampler[0](torch.nn.functional.leaky_relu(net.conv_pre(mel), 0.1))
    found = {
        "conv_pre": net.conv_pre(mel), "first_upsample": first,
        "before_tanh": model.upsampler(mel), "waveform": model(mel)[:, None],
    }  # fmt: skip
    for name, value in found.items():
        assert parity.distance(value.numpy(), expected[name]) < 1e-4, name
    torch.testing.assert_close(net(mel.transpose(1, 2)), model(mel), msg="transformers runs its layers differently")
    assert count(model) == loaded["params"]


@torch.no_grad()
def test_folding_the_weight_norm_changes_nothing(small):
    _, model, mel = small
    before = model(mel)
    state = remove_weight_norm(model).state_dict()
    assert count(model) == 227_361 and not any("original" in key for key in state)
    torch.testing.assert_close(model(mel), before, atol=1e-5, rtol=1e-5)
    official = {key.removeprefix("upsampler.net.").replace("upsampler.", "ups."): value for key, value in state.items()}
    again = HifiGan(80, 64, (4, 4, 2), (8, 8, 4))
    again.load_state_dict(from_official(official))
    torch.testing.assert_close(again(mel), before, atol=1e-5, rtol=1e-5, msg="folded checkpoints are read too")


@pytest.mark.parametrize(("name", "parameters"), [("v1", 13_926_017), ("v2", 925_985), ("v3", 1_462_273)])
def test_sizes_are_the_published_ones(name, parameters):
    assert count(HifiGan(**SIZES[name]), gains=False) == parameters


@pytest.mark.parametrize("args", [{"resblock": 2}, {"rates": (5, 3), "kernels": (11, 7)}])
def test_every_frame_becomes_a_hop(args):
    model = HifiGan(10, **{"channels": 16, "rates": (4, 2), "kernels": (8, 4)} | args)
    for frames in (1, 2, 7):
        wave = model(torch.randn(2, 10, frames))
        assert wave.shape == (2, frames * model.hop) and wave.abs().max() <= 1


def test_layers_start_at_a_scale_that_lets_sound_through():
    torch.manual_seed(0)
    wave = HifiGan(**SIZES["v2"])(torch.randn(1, 80, 8))
    assert wave.std() > 1e-3


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"kernels": (8, 5)}, r"kernels \[8, 5\] do not fit the rates \[4, 2\]"),
        ({"kernels": (8,)}, r"kernels \[8\] do not fit"),
        ({"channels": 18}, "18 channels cannot be halved 2 times"),
        ({"resblock": 3}, "no resblock 3"),
    ],
)
def test_refuses_what_does_not_fit(args, sentence):
    with pytest.raises(UserError, match=sentence):
        HifiGan(10, **{"channels": 16, "rates": (4, 2), "kernels": (8, 4)} | args)
