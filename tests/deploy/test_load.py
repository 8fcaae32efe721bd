"""Models by name and by file."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from vitalk.deploy.load import load_model
from vitalk.errors import UserError

from .conftest import SMALL

META = {
    "model": "vit_tiny_patch16_224",
    "model_args": json.dumps({k: v for k, v in SMALL.items() if k != "num_classes"}),
    "preprocess": json.dumps({"input_size": [3, 32, 32], "crop_pct": 1.0, "interpolation": "bilinear"}),
    "labels": json.dumps(["red", "green", "blue"]),
}


def test_a_trained_model_file_brings_everything(tmp_path, small_vit):
    save_file({k: v.contiguous() for k, v in small_vit.state_dict().items()}, tmp_path / "m.safetensors", META)
    loaded = load_model(str(tmp_path / "m.safetensors"))
    assert loaded.labels == ["red", "green", "blue"] and loaded.preprocess.size == (32, 32)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded.model(images), small_vit(images))


def test_timm_names(tmp_path):
    loaded = load_model("vit_tiny_patch16_224", pretrained=False)
    assert loaded.model.num_classes == 1000 and loaded.preprocess.size == (224, 224) and not loaded.model.training


def test_bad_names_and_files(tmp_path, small_vit):
    state = {k: v.contiguous() for k, v in small_vit.state_dict().items()}
    save_file(state, tmp_path / "bare.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors", META)
    save_file({**state, "norm.bias": torch.full((32,), float("nan"))}, tmp_path / "nan.safetensors", META)
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "text.ckpt").write_text("no weights")
    cases = {
        "none.safetensors": "no checkpoint", "bare.safetensors": "which model", "other.safetensors": "does not fit",
        "nan.safetensors": "NaN", "text.safetensors": "not a readable", "text.ckpt": "not a checkpoint",
    }  # fmt: skip
    for name, words in cases.items():
        with pytest.raises(UserError, match=words):
            load_model(str(tmp_path / name))
    with pytest.raises(UserError, match="Did you mean vit_tiny_patch16_224"):
        load_model("vit_tiny_patch16_22")
    assert timm.is_model("vit_tiny_patch16_224")
