"""ECAPA-TDNN against the release that FireRedTTS carries, and what padding may not do."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity import parity
from vitalk.errors import UserError
from vitalk.speech.acoustic.ecapa import EcapaTDNN, from_speechbrain
from vitalk.speech.acoustic.fft_block import length_mask

PARITY = Path(__file__).parents[2] / "parity" / "fireredtts.ecapa_small.json"
SMALL = {"channels": (8, 8, 12, 16), "kernels": (5, 3, 3, 1), "dilations": (1, 2, 3, 1), "scale": 4, "attention": 6,
         "squeeze": 4}  # fmt: skip


@torch.inference_mode()
def test_agrees_with_the_release():
    known = parity.load(PARITY)
    channels = (32, 32, 32, 32, 96)
    model = EcapaTDNN(20, 24, channels, scale=4, attention=16, squeeze=16, edges="reflect").eval()
    assert sum(p.numel() for p in model.parameters()) == known["params"]
    state = {key: torch.from_numpy(value) for key, value in parity.filled_state(known).items()}
    missing, unexpected = model.load_state_dict(from_speechbrain(state), strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    seen = {}
    model.blocks[1].register_forward_hook(lambda _, __, out: seen.update(block=out))
    mel = torch.from_numpy(parity.tensor("mel", **known["inputs"]["mel"]))
    found = model(mel.transpose(1, 2))
    assert parity.distance(found.numpy(), known["outputs"]["embedding"]) < 1e-4
    found = model(mel.transpose(1, 2), length_mask(torch.tensor([40, 24]), 40))
    assert parity.distance(seen["block"].numpy(), known["outputs"]["block_1"]) < 1e-4
    assert parity.distance(found.numpy(), known["outputs"]["embedding_lengths"]) < 1e-4


def test_speechbrain_s_own_names_are_known():
    state = {"blocks.0.norm.norm.weight": torch.ones(4), "asp_bn.norm.running_mean": torch.ones(4),
             "blocks.1.shortcut.conv.weight": torch.ones(1), "fc.conv.weight": torch.ones(3, 4, 1)}  # fmt: skip
    found = from_speechbrain(state)
    names = {"blocks.0.norm.weight", "asp_bn.running_mean", "blocks.1.shortcut.weight", "fc.weight"}
    assert set(found) == names and found["fc.weight"].shape == (3, 4)


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 6))
@settings(max_examples=12, deadline=None)
@torch.inference_mode()
def test_padding_has_no_say(seed, frames, more):
    torch.manual_seed(seed)
    model = EcapaTDNN(5, 7, **SMALL).eval()
    x = torch.randn(1, 5, frames)
    padded = torch.cat([torch.cat([x, torch.full((1, 5, more), 9.0)], 2), torch.randn(1, 5, frames + more)])
    found = model(padded, length_mask(torch.tensor([frames, frames + more]), frames + more))
    torch.testing.assert_close(found[:1], model(x), rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_named():
    with pytest.raises(UserError, match="3 channels, 2 kernels and 3 dilations"):
        EcapaTDNN(5, channels=(8, 8, 8), kernels=(3, 1), dilations=(1, 1, 1))
    with pytest.raises(UserError, match="10 channels do not make 4 parts"):
        EcapaTDNN(5, **{**SMALL, "channels": (10, 10, 10, 16)})
