"""A small exported classifier and a small voice that the deployment tests share."""

import pytest
import timm
import torch

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 3}


@pytest.fixture(scope="session")
def small_vit():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SMALL).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


@pytest.fixture(scope="session")
def model_file(small_vit, tmp_path_factory):
    from vitalk.deploy.onnx_export import export_onnx
    from vitalk.deploy.preprocess import Preprocess

    path = tmp_path_factory.mktemp("model") / "small.onnx"
    return export_onnx(small_vit, path, Preprocess((32, 32), crop_pct=0.9), ["red", "green", "blue"], "small")


@pytest.fixture(scope="session")
def voice_file(tmp_path_factory):
    from vitalk.deploy.voice_export import export_voice

    from .test_voice_export import SPEC, networks

    path = tmp_path_factory.mktemp("voices") / "babble.onnx"
    return export_voice(*networks(), SPEC, path, "babble", "en-us", licence="CC0")
