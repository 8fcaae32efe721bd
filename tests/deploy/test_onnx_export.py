"""Exported files: what they compute, what they carry, what they look like inside."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn

from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.preprocess import Preprocess
from vitalk.deploy.runtime import Eye
from vitalk.errors import UserError
from vitalk.systems.evit import evit
from vitalk.systems.repq_vit import repq_vit

from .conftest import SMALL

LABELS = ["red", "green", "blue"]


def test_the_file_carries_all_it_needs(model_file):
    eye = Eye.load(model_file)
    assert eye.labels == LABELS and eye.preprocess == Preprocess((32, 32), crop_pct=0.9)
    domains = {o.domain for o in onnx.load(model_file).opset_import}
    assert domains <= {"", "ai.onnx"}, "standard operators only"


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_agrees_with_torch(model_file, small_vit, batch):
    images = torch.randn(batch, 3, 32, 32)
    got = Eye.load(model_file).logits(images.numpy())
    with torch.inference_mode():
        np.testing.assert_allclose(got, small_vit(images).numpy(), atol=1e-4)


def test_reduced_and_quantized_models_run_as_integers(small_vit, tmp_path):
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    reduced = timm.create_model("vit_tiny_patch16_224", **SMALL).eval()
    reduced.load_state_dict(small_vit.state_dict())
    model = repq_vit(evit(reduced, 0.6, blocks=(1, 2)), images, 8, 8, attention="float")
    path = export_onnx(model, tmp_path / "q.onnx", Preprocess((32, 32)), LABELS)
    with torch.inference_mode():
        expected = model(images).numpy()
    got = Eye.load(path).logits(images.numpy())
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 1e-3
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    fused = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    linear = 4 * SMALL["depth"] + 1 + 1  # four a block, the head, the patch embedding
    assert fused["MatMulIntegerToFloat"] + fused["QLinearMatMul"] + fused["QLinearConv"] == linear, fused
    plain = tmp_path / "f.onnx"
    export_onnx(small_vit, plain, Preprocess((32, 32)), LABELS)
    assert path.stat().st_size < plain.stat().st_size


def test_refusals_leave_nothing(tmp_path, small_vit):
    with pytest.raises(UserError, match="3 classes"):
        export_onnx(small_vit, tmp_path / "a.onnx", Preprocess((32, 32)), ["one"])
    broken = timm.create_model("vit_tiny_patch16_224", **SMALL).eval()
    with torch.no_grad():
        broken.head.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        export_onnx(broken, tmp_path / "a.onnx", Preprocess((32, 32)), LABELS)
    assert list(tmp_path.iterdir()) == []


class Odd(nn.Module):
    """A classifier with something in it that ONNX has no operator for, or that refuses."""

    def __init__(self, refuses):
        super().__init__()
        self.refuses, self.num_classes, self.head = refuses, 3, nn.Linear(48, 3)

    def forward(self, images):
        x = self.head(images.flatten(1))
        if self.refuses:
            raise UserError("this one is for other pictures")
        return torch.special.bessel_j0(x)


@pytest.mark.parametrize("refuses, words", [(False, "bessel_j0"), (True, "this one is for other pictures")])
def test_says_what_cannot_be_exported(tmp_path, refuses, words):
    with pytest.raises(UserError, match=words):
        export_onnx(Odd(refuses), tmp_path / "m.onnx", Preprocess((4, 4)), list("abc"))
    assert list(tmp_path.iterdir()) == []
