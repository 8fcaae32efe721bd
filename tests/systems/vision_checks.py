"""What the tests of several vision systems check alike."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.preprocess import Preprocess
from vitalk.deploy.runtime import Eye
from vitalk.errors import UserError
from vitalk.files import data_root
from vitalk.training import run


def awake(module):
    """The module with norms, tables and running statistics away from their start, as after training."""
    generator = torch.Generator().manual_seed(1)
    for value in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
        value.data.add_(torch.rand(value.shape, generator=generator), alpha=0.2)
    return module.eval()


def preset_of(module, name):
    """A preset of the recipe that lies beside a system's module."""
    return yaml.safe_load((Path(module.__file__).parent / "recipe.yaml").read_text())["presets"][name]


def trained_by_recipe(system, pictures, folder):
    """The weights after two logged steps of the preset tiny."""
    overrides = ["--trainer.max_steps=2", "--data.init_args.batch_size=8", "--data.init_args.workers=0"]
    overrides += ["--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
    weights = load_file(run(system, "tiny", str(pictures), folder, overrides))
    rows = list(csv.DictReader(next((folder / "csv").glob("*/metrics.csv")).open()))
    assert len([row for row in rows if row.get("train/loss")]) == 2
    return weights


@torch.inference_mode()
def exports_with_any_batch(model, size, classes, folder):
    """The exported file gives the model's logits for pictures of size [height, width], one or several at a time."""
    path = export_onnx(model, folder / "model.onnx", Preprocess(size), list("abcde")[:classes])
    for batch in (1, 3):
        x = torch.randn(batch, 3, *size)
        np.testing.assert_allclose(Eye.load(path).logits(x.numpy()), model(x).numpy(), atol=1e-4, rtol=1e-3)


def measured_on_one_seed(reproduce, monkeypatch, batch=16, **small):
    """What a reproduction measures in a second or two on real pictures; small: settings of its module."""
    if not (data_root() / "images" / "cifar10").is_dir():
        pytest.skip(f"no CIFAR-10 in {data_root()}")
    for name, value in {"SEEDS": 1, "BATCH": batch, **small}.items():
        monkeypatch.setattr(reproduce, name, value)
    measured = reproduce.measure(0.02, data_root())
    assert {len(scores) for scores in measured.details["top1"].values()} == {1}
    return measured


def refuses_broken_input(quantize, model, images):
    """Quantization names what is wrong with pictures, a quantized model and weights: those of ``model`` go."""
    with pytest.raises(UserError, match="needs pictures"):
        quantize(model, images[:0])
    with pytest.raises(UserError, match="pictures hold NaN"):
        quantize(model, images * float("nan"))
    with pytest.raises(UserError, match="already"):
        quantize(quantize(model, images), images)
    model.get_classifier().weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"head\.(fc\.)?weight"):
        quantize(model, images)
