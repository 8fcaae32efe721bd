"""The table of quantization methods: every row by the same pictures, and a picture of it."""

import json

import pytest
import torch
from PIL import Image

from tests.nn.quant.test_sites import tiny_vit
from vitalk.benchmarks import quant
from vitalk.deploy.load import Loaded
from vitalk.deploy.preprocess import Preprocess
from vitalk.errors import UserError
from vitalk.experiments import budget
from vitalk.vision.experiments import Pictures


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(quant, "CALIBRATION", 4)
    monkeypatch.setattr(quant, "BITS", ((8, 8), (3, 3)))
    monkeypatch.setattr(quant, "MIXED", ((4, 4),))
    pixels = torch.randint(0, 256, (300, 3, 16, 16), dtype=torch.uint8)
    return Loaded(tiny_vit(num_classes=10), Preprocess((16, 16)), None, "tiny"), Pictures(
        pixels, torch.arange(300) % 10
    )


def test_rows_say_accuracy_bytes_and_integers(tiny, tmp_path):
    loaded, pictures = tiny
    with budget("test", 0.1) as time:
        rows = quant.judged(quant.rows_of(["minmax", "lrp-qvit"]), loaded, pictures, pictures.spaced(50), 1, time)
    names = [(row["method"], row["bits"]) for row in rows]
    assert names == [
        ("float", "W32A32"), ("minmax", "W8A8"), ("minmax", "W3A3"),
        ("lrp-qvit", "W8A8"), ("lrp-qvit", "W3A3"), ("lrp-qvit", "W4A4 mixed"),
    ]  # fmt: skip
    plain, eight, three = rows[:3]
    assert eight["int8_products"].split(" of ")[0] == "10" and "file_ms" not in three
    assert plain["bytes"] > eight["bytes"] > three["bytes"] and abs(eight["drop"]) <= 10
    assert json.loads(json.dumps(rows)) == rows
    quant.draw_plot({"model": "tiny", "rows": rows}, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 500


def test_time_is_shared_between_steps_and_pictures(tiny):
    loaded, pictures = tiny
    rows = quant.rows_of(["minmax", "is-vit"])
    with budget("test", 0.2) as time:
        steps, count = quant.affordable(rows, loaded, quant.draw(pictures, 4, 0), pictures.spaced(50), time)
    assert 5 <= steps <= 1000 and 250 <= count <= 10_000
    with budget("test", 0.2) as time:
        assert quant.affordable(quant.rows_of(["minmax"]), loaded, quant.draw(pictures, 4, 0), pictures, time)[0] == 0


def test_refuses_models_of_other_classes(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(quant, "load_model", lambda name: Loaded(tiny_vit(), Preprocess((16, 16)), None, name))
    with pytest.raises(UserError, match="CIFAR-10"):
        quant.compare(0.1, tmp_path, "other", ["minmax"])
