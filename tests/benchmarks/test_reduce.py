"""The comparison of reducers is at equal cost, and its reference for overhead reduces as much for free."""

import json

import pytest
import timm
import torch
from PIL import Image

from vitalk.benchmarks import reduce
from vitalk.experiments import budget
from vitalk.reducers import tokens_by_block
from vitalk.systems.sit import sit
from vitalk.vision.cost import count
from vitalk.vision.experiments import Pictures
from vitalk.vision.merging import tome

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 5}


@pytest.mark.parametrize("make", [lambda vit: tome(vit, 7), lambda vit: sit(vit, 0.5)])
def test_free_reduction_has_the_same_tokens_and_fewer_macs(make):
    image = torch.randn(1, 3, 32, 32)
    reduced = make(timm.create_model("vit_tiny_patch16_224", **SMALL).eval())
    free = reduce.truncated(reduced, image)
    assert tokens_by_block(free, image) == tokens_by_block(reduced, image)
    macs = count(reduced, image).macs
    assert 0.9 * macs < count(free, image).macs <= macs


def test_speeds_are_set_against_macs(monkeypatch):
    monkeypatch.setattr(reduce, "DEIT", "deit_tiny_patch16_224")
    monkeypatch.setattr(reduce, "latencies", lambda runs, **_: {name: 2.0 if name == "plain" else 1.0 for name in runs})
    asked = []
    monkeypatch.setattr(
        reduce, "file_latencies", lambda models, _: asked.append(models) or {16: {n: 1.0 for n in models}}
    )
    rows = reduce.speeds(1.0, lambda *_: None)
    assert list(rows) == ["plain", *reduce.PAPERS]
    for name, row in rows.items():
        assert row["ratio_1"] == (1 if name == "plain" else 2) and row["images_16"] == (8 if name == "plain" else 16)
    evit = rows["evit"]
    assert 1.4 < evit["ratio_macs"] < 1.6 and evit["gain_1_fraction"] == pytest.approx(2 / evit["ratio_macs"])
    assert evit["overhead_16_fraction"] == 0 and list(asked[0]) == list(rows)
    assert evit["ratio_onnx_16"] == 1 and evit["gain_onnx_16_fraction"] == pytest.approx(1 / evit["ratio_macs"])


def test_files_are_timed_in_turns(monkeypatch):
    model = timm.create_model("vit_tiny_patch16_224", **{**SMALL, "img_size": 224, "patch_size": 56})
    monkeypatch.setattr(reduce, "BATCHES", (1, 3))
    taken = reduce.file_latencies({"plain": model.eval()}, 0.1)
    assert list(taken) == [1, 3] and all(0 < found["plain"] < 1 for found in taken.values())


def test_all_methods_are_judged_at_the_same_cost_and_drawn(monkeypatch, tmp_path):
    for name, value in {"BATCH": 8, "SEARCH": 3, "SEEDS": 1}.items():
        monkeypatch.setattr(reduce, name, value)
    torch.manual_seed(0)
    pixels, labels = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (64,))
    train, test = Pictures(pixels, labels, padding=4), Pictures(pixels[:16], labels[:16])
    with budget("test", 0.01) as time:
        judged, steps = reduce.accuracies(train, test, time)
    assert steps == 5 and list(judged) == ["plain", "evit", "tome", "mctf", "diffrate", "sit"]
    assert judged["plain"]["eye_macs_fraction"] == 1 and judged["sit"]["top1"] is None
    for name, row in judged.items():
        assert 0 <= row["tuned_top1"] <= 100
        if name != "plain":
            assert 0.5 < row["eye_macs_fraction"] <= reduce.SHARE + 0.02
    rows = [{"name": n, "ratio_macs": 1.5, "ratio_1": 1.4, "ratio_16": 1.5, **row} for n, row in judged.items()]
    json.dumps(rows)
    reduce.draw({"rows": rows}, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").width == 1500
