"""The verb ``compress``, from a model file and a folder of pictures to the report."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.deploy.conftest import SMALL
from vitalk.cli.compress import QUANT, compress
from vitalk.deploy.runtime import Eye
from vitalk.errors import UserError

DEFAULTS = {
    "data": None, "tokens": None, "keep": None, "merge": None, "target_flops": None, "target_latency": None,
    "blocks": None, "visualize": None, "schedule": None, "search_steps": 4, "prune": None, "quant": None,
    "bits": "w8a8", "attention": "float", "mixed": False, "steps": None, "pack": False,
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
        ({"tokens": "evit", "merge": 3}, "--merge is not for evit, which takes --keep"),
        ({"tokens": "tome", "keep": 0.5}, "--keep is not for tome"),
        ({"tokens": "tome", "target_flops": 1.5}, "--target-flops must be in"),
        ({"tokens": "tome", "target_flops": 0.01}, "out of reach"),
        ({"tokens": "evit", "target_latency": -1.0}, "--target-latency must be more than 0"),
        ({"tokens": "evit", "keep": 0.5, "target_flops": 0.5}, "both say"),
        ({"quant": "repq-vit", "target_flops": 0.5}, "about tokens"),
        ({"prune": 1.0}, "--prune must be in"),
        ({"tokens": "sit"}, "must be trained: vitalk train sit"),
        ({"tokens": "evit", "schedule": Path("s.json")}, "--schedule stands in place"),
        ({"tokens": "diffrate", "schedule": Path("s.json"), "target_flops": 0.5}, "--schedule stands in place"),
        ({"tokens": "diffrate", "schedule": Path("nowhere.json")}, "no schedule at nowhere.json"),
        ({"tokens": "diffrate", "target_flops": 0.01}, "cannot be reached"),
        ({"prune": 0.99}, "cannot be reached"),
        ({"quant": "repq-vit", "visualize": Path("drawn")}, "--visualize"),
        ({"quant": "repqvit"}, "Did you mean repq-vit"),
        ({"quant": "repq-vit", "mixed": True}, "for mixed precision choose mptq-vit, lrp-qvit"),
        ({"quant": "repq-vit", "steps": 5}, "reconstructs nothing"),
        ({"tokens": "evit", "pack": True}, "name --quant"),
    ],
)
def test_bad_options_leave_nothing(model_path, picture_folder, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        run(model_path, tmp_path / "out", **{"data": str(picture_folder), **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("tokens", "target"), [("evit", 0.7), ("tome", 0.6)])
def test_a_share_of_the_macs_is_met_and_drawn(model_path, picture_folder, tmp_path, tokens, target):
    from PIL import Image

    out, drawn = tmp_path / "small", tmp_path / "drawn"
    run(model_path, out, data=str(picture_folder), tokens=tokens, target_flops=target, visualize=drawn, limit=8)
    report = json.loads((out / "report.json").read_text())
    plain, reduced = report["rows"]
    assert target - 0.1 < reduced["macs"] / plain["macs"] <= target
    counts = report["settings"]["tokens behind each block"]
    assert len(counts) == SMALL["depth"] and counts[-1] < counts[0]
    assert len(list(drawn.iterdir())) == 8 and Image.open(drawn / "0.png").width > 2 * 224


def test_a_latency_decides_the_strength(model_path, picture_folder, tmp_path, monkeypatch):
    from vitalk import reducers

    asked = []

    def milliseconds(loaded, finish, folder):
        return lambda model: asked.append(finish(model)) or 8.0 - model.reducers[0].count

    monkeypatch.setattr(reducers, "file_latency", milliseconds)
    run(model_path, tmp_path / "small", data=str(picture_folder), tokens="tome", target_latency=5.5, limit=4)
    assert "merge 3," in json.loads((tmp_path / "small" / "report.json").read_text())["settings"]["tokens"]
    assert len(asked) == 4  # the strongest, then a bisection of seven


def test_pruned_and_reduced_together(model_path, picture_folder, tmp_path):
    run(model_path, tmp_path / "s", data=str(picture_folder), prune=0.3, tokens="tome", merge=2, limit=4)
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    rows = {row["variant"]: row for row in report["rows"]}
    assert list(rows) == ["float", "slim", "slim-tome"]
    assert rows["slim"]["macs"] <= 0.7 * rows["float"]["macs"] and rows["slim-tome"]["macs"] < rows["slim"]["macs"]
    assert "30.0% of the MACs" in report["settings"]["pruning"]


def test_a_schedule_is_searched_saved_and_used_again(model_path, picture_folder, tmp_path):
    data = str(picture_folder)
    run(model_path, tmp_path / "a", data=data, tokens="diffrate", target_flops=0.8, search_steps=40, limit=4)
    assert (tmp_path / "a" / "schedule.json").is_file()
    run(model_path, tmp_path / "b", data=data, tokens="diffrate", schedule=tmp_path / "a" / "schedule.json", limit=4)
    found, again = (json.loads((tmp_path / name / "report.json").read_text()) for name in "ab")
    assert found["rows"][1]["macs"] == again["rows"][1]["macs"] < found["rows"][0]["macs"]
    assert found["settings"]["tokens behind each block"] == again["settings"]["tokens behind each block"]


def test_the_verb_knows_every_reducer():
    from vitalk.cli.compress import STRENGTHS
    from vitalk.reducers import REDUCERS

    assert set(STRENGTHS) == set(REDUCERS)
    assert all((option == "target-flops") == (REDUCERS[name].learn is not None) for name, option in STRENGTHS.items())


def test_the_verb_knows_every_method():
    from vitalk.quantization import METHODS

    assert set(QUANT) == set(METHODS)


def test_four_bits_take_four_bits_in_the_file(model_path, picture_folder, tmp_path):
    rows = {}
    for pack in (False, True):
        out = tmp_path / str(pack)
        run(model_path, out, data=str(picture_folder), quant="is-vit", bits="w4a8", steps=1, pack=pack, limit=8)
        rows[pack] = json.loads((out / "report.json").read_text())["rows"][-1]
    assert rows[True]["bytes"] < rows[False]["bytes"] and rows[True]["agreement"] == 100
    assert rows[False]["int8_products"] > 0 == rows[True]["int8_products"]


def test_calibration_with_one_class_is_refused(model_path, tmp_path):
    from PIL import Image

    folder = tmp_path / "pictures"
    for name in ("train", "test"):
        for i in range(40):
            path = folder / name / "blue" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (i, 2 * i, 200)).save(path)
    with pytest.raises(UserError, match="one class"):
        run(model_path, tmp_path / "out", data=str(folder), quant="repq-vit")
    assert not (tmp_path / "out").exists()
