"""What ``vitalk bench vision`` makes of its measurements."""

import json

import timm
import torch

from vitalk.benchmarks.vision import summarize, write
from vitalk.systems.evit import evit


def test_ratios_are_of_one_run(tmp_path):
    names = (("timm eager fp32", "fp32", False), ("peer int8", "int8", False), ("vitalk int8", "int8", True))
    rows = [{"name": n, "arithmetic": a, "ours": o, "macs": 100} for n, a, o in names]
    measured = {
        "timm eager fp32": {1: 10.0, 16: 20.0}, "peer int8": {1: 20.0, 16: 50.0}, "vitalk int8": {1: 30.0, 16: 60.0},
        "peak-fp32": {1: 4000.0}, "peak-bf16": {1: 8000.0}, "peak-int8": {1: 12000.0},
    }  # fmt: skip
    report = summarize(rows, measured, keep=0.7)
    report |= {"calibration_seconds": 4.2, "reducer_overhead": {"1": 0.012, "16": -0.001}}
    ours = {row["batch"]: row for row in report["rows"] if row["name"] == "vitalk int8"}
    assert ours[1]["ratio_to_eager"] == 3 and ours[1]["ratio_to_best_peer"] == 1.5
    assert ours[16]["ratio_to_best_peer"] == 1.2 and ours[16]["peak_fraction"] == 0.5
    write(report, tmp_path / "deep" / "bench.json")
    assert json.loads((tmp_path / "deep" / "bench.json").read_text()) == report
    assert (
        "4.2 s. Reducers in all blocks at keep rate 1: +1.2 % at batch 1"
        in (tmp_path / "deep" / "bench.md").read_text()
    )
    assert "| vitalk int8 | 16 | 60.0 | 3.00 | 1.20 | 50 % int8 |" in (tmp_path / "deep" / "bench.md").read_text()


def test_a_reducer_with_nothing_to_do_is_the_plain_model():
    vit = timm.create_model("deit_tiny_patch16_224", img_size=32, depth=3, embed_dim=24, num_heads=2).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(evit(vit, 1.0, range(3))(x), vit(x))
