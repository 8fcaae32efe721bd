"""Vocos against the official model, its published size, and the file that it becomes."""

import contextlib
import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity import parity
from tests.speech.vocoder.fixtures import FOLDER, count, given_inputs, official_state
from vitalk.speech.vocoder.istft_numpy import overlap_add
from vitalk.speech.vocoder.stft import inverse_stft
from vitalk.speech.vocoder.vocos import CLIP, CONFIGS, Vocos, from_official


@torch.inference_mode()
def test_agrees_with_the_official_model():
    loaded = parity.load(FOLDER / "vocos.small_center.json")
    state = official_state(loaded) | {"head.istft.window": torch.hann_window(64), "feature_extractor.x": torch.ones(1)}
    model = Vocos(20, 48, 96, 3, 64, 16, "center")
    model.load_state_dict(from_official(state))
    mel, expected = given_inputs(loaded, "features"), loaded["outputs"]
    head = torch.complex(*model.head(given_inputs(loaded, "head_input")))
    found = {
        "embed": model.embed(mel), "backbone": model.hidden(mel), "waveform": model(mel),
        "head_only": inverse_stft(head, 64, 16, "center"),
    }  # fmt: skip
    for name, value in found.items():
        assert parity.distance(value.numpy(), expected[name]) < 1e-4, name
    assert count(model) == loaded["params"]


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        assert count(Vocos(**CONFIGS["vocos"])) == 13_531_650
        assert count(Vocos(**CONFIGS["vitalk"])) == 1_684_850
        assert count(Vocos(80, 256, 768, 8)) == pytest.approx(3.59e6, rel=0.005)


@given(st.integers(1, 30))
@settings(max_examples=15, deadline=None)
def test_every_frame_becomes_a_hop(frames):
    mel = torch.randn(2, 10, frames)
    assert Vocos(10, 16, 32, 1, 60, 15)(mel).shape == (2, frames * 15)
    assert Vocos(10, 16, 32, 1, 60, 15, "center")(mel).shape == (2, (frames - 1) * 15)


def test_starts_as_the_paper_says_and_bounds_magnitudes():
    torch.manual_seed(0)
    model = Vocos(80, 192, 384, 4)
    assert model.embed.weight.std().item() == pytest.approx(0.02, rel=0.05) and not model.out.bias.any()
    assert torch.equal(model.convnext[0].gamma, torch.full((192,), 0.25))
    with torch.no_grad():
        model.out.bias.fill_(50.0)
        real, imag = model.spectrum(torch.randn(1, 80, 4))
    torch.testing.assert_close(torch.hypot(real, imag), torch.full_like(real, CLIP))


class Exported(torch.nn.Module):
    def __init__(self, vocos):
        super().__init__()
        self.vocos = vocos

    def forward(self, mel):
        return self.vocos.spectrum(mel)


def test_the_exported_network_gives_what_torch_gives_for_any_length(tmp_path):
    import onnxruntime

    torch.manual_seed(0)
    model = Vocos(20, 32, 64, 2, 120, 30).eval()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Exported(model), (torch.randn(1, 20, 11),), tmp_path / "v.onnx", dynamo=True, verbose=False,
            input_names=["mel"], output_names=["real", "imag"], dynamic_shapes=({2: torch.export.Dim("frames")},),
        )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "v.onnx", providers=["CPUExecutionProvider"])
    for frames in (1, 5, 64):
        mel = torch.randn(1, 20, frames)
        real, imag = session.run(None, {"mel": mel.numpy()})
        with torch.inference_mode():
            expected, wave = torch.complex(*model.spectrum(mel)).numpy(), model(mel).numpy()
        np.testing.assert_allclose(real + 1j * imag, expected, atol=1e-4)
        np.testing.assert_allclose(overlap_add(real[0] + 1j * imag[0], 120, 30), wave[0], atol=1e-4)
