"""Generators by name, and the files that keep them."""

import pytest
import torch
from safetensors.torch import save_file

from vitalk.errors import UserError
from vitalk.speech.mel import PRESETS
from vitalk.speech.vocoder.generators import NAMES, create, load_vocoder, save_vocoder

SMALL = {"vocos": {"dim": 16, "intermediate": 32, "layers": 1}}
OTHERS = {"channels": 16}


PLAIN = [name for name in NAMES if not name.startswith("hifinet")]


@pytest.mark.parametrize(
    ("name", "mel"), [*((name, mel) for name in PLAIN for mel in ("hifigan", "vitalk")), ("vocos", "vocos")]
)
def test_every_generator_fits_every_preset_and_its_file(name, mel, tmp_path):
    spec, args = PRESETS[mel], SMALL.get(name, OTHERS)
    torch.manual_seed(0)
    generator = create(name, spec, args).eval()
    heard = torch.randn(2, spec.n_mels, 5)
    with torch.no_grad():
        wave = generator(heard)
    assert wave.shape == (2, (5 - (spec.center and name == "vocos")) * spec.hop)
    save_vocoder(tmp_path / "v.safetensors", generator, name, args, mel)
    again, preset = load_vocoder(tmp_path / "v.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(again(heard), wave, atol=1e-5, rtol=1e-5)
    assert preset == mel and not any("original" in key for key in again.state_dict())


@pytest.mark.parametrize(
    ("name", "args", "sentence"),
    [
        ("vocoss", {}, "no vocoder vocoss; choose one of vocos.* Did you mean vocos?"),
        ("vocos", {"dims": 3}, "vocos has no argument dims; it has n_mels, dim.* Did you mean dim?"),
        ("hifigan-v2", {"rates": [8, 8], "kernels": [16, 16]}, "makes 64 samples a frame, but the hop is 256"),
    ],
)
def test_refuses_what_does_not_exist_or_fit(name, args, sentence):
    with pytest.raises(UserError, match=sentence):
        create(name, PRESETS["hifigan"], args)


def test_refuses_files_that_are_no_vocoders(tmp_path):
    with pytest.raises(UserError, match="no vocoder at"):
        load_vocoder(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as a vocoder"):
        load_vocoder(tmp_path / "bad.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="holds no vocoder"):
        load_vocoder(tmp_path / "other.safetensors")
