"""The verb ``compress``, from a model file and a folder of pictures to the report."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.deploy.conftest import SMALL
from vitalk.cli.compress import compress
from vitalk.deploy.runtime import Eye
from vitalk.errors import UserError

DEFAULTS = {
    "data": None, "tokens": None, "keep": 0.7, "blocks": None, "quant": None, "bits": "w8a8", "attention": "float",
    "calibration": 16, "limit": 24, "random_weights": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SMALL)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    meta = {
        "model": "vit_tiny_patch16_224",
        "model_args": json.dumps({k: v for k, v in SMALL.items() if k != "num_classes"}),
        "preprocess": json.dumps({"input_size": [3, 32, 32], "crop_pct": 1.0, "interpolation": "bicubic"}),
        "labels": json.dumps(["blue", "green", "red"]),
    }
    path = tmp_path_factory.mktemp("compress") / "m.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path, meta)
    return path


def run(model, output, **options):
    compress(str(model), output, **{**DEFAULTS, **options})


def test_all_variants_are_measured_and_the_last_one_is_kept(model_path, picture_folder, tmp_path):
    out = tmp_path / "small"
    run(model_path, out, data=str(picture_folder), tokens="evit", keep=0.5, quant="repq-vit")
    assert sorted(p.name for p in out.iterdir()) == ["model.onnx", "report.json", "report.md", "report.png"]
    rows = {row["variant"]: row for row in json.loads((out / "report.json").read_text())["rows"]}
    assert list(rows) == ["float", "evit", "w8a8", "evit-w8a8"]
    assert rows["evit"]["macs"] < rows["float"]["macs"] and rows["w8a8"]["bytes"] < rows["float"]["bytes"]
    for row in rows.values():
        assert abs(row["torch_top1"] - row["file_top1"]) <= 100 / 24 and row["agreement"] >= 95
        assert row["ms_batch1"] > 0 and row["peak_bytes"] > 1e7
    eye = Eye.load(out / "model.onnx")
    assert eye.labels == ["blue", "green", "red"]
    assert eye.logits(np.zeros((2, 3, 32, 32), np.float32)).shape == (2, 3)
    assert "| evit-w8a8 |" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing to do"),
        ({"tokens": "evit", "keep": 0.0}, "--keep"),
        ({"tokens": "evit", "keep": 2.0}, "--keep"),
        ({"tokens": "evti"}, "Did you mean evit"),
        ({"quant": "repq-vit", "bits": "w9a9"}, "w8a8"),
        ({"quant": "repq-vit", "attention": "none"}, "attention"),
        ({"tokens": "evit", "blocks": "a,b"}, "--blocks"),
        ({"tokens": "evit", "blocks": "1,99"}, "do not exist"),
        ({"quant": "repq-vit", "data": "nowhere"}, "no data"),
    ],
)
def test_bad_options_leave_nothing(model_path, picture_folder, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        run(model_path, tmp_path / "out", **{"data": str(picture_folder), **options})
    assert list(tmp_path.iterdir()) == []
