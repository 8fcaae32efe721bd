"""What ``vitalk bench vision`` makes of its measurements."""

import json

import pytest

from vitalk.cli.bench import summarize, write
from vitalk.errors import UserError


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
    import timm
    import torch

    from vitalk.systems.evit import evit

    vit = timm.create_model("deit_tiny_patch16_224", img_size=32, depth=3, embed_dim=24, num_heads=2).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(evit(vit, 1.0, range(3))(x), vit(x))


def run_speech(*args):
    from typer.testing import CliRunner

    from vitalk.cli.bench import app

    return CliRunner().invoke(app, ["speech", *map(str, args)], catch_exceptions=False)


def test_speech_writes_json_and_markdown(tmp_path, monkeypatch):
    from vitalk.deploy import speech_contest

    asked = []
    record = {"machine": "EPYC", "note": "Ratios.", "rows": [{"name": "vitalk", "wer": 0.0312, "ratio_size": 9.5}]}
    monkeypatch.setattr(speech_contest, "compare", lambda *given: asked.append(given) or record)
    done = run_speech("--rounds", 2, "--limit", 5, "--voice", "x.onnx", "-o", tmp_path / "new" / "b.json")
    assert done.exit_code == 0 and asked == [("x.onnx", 2, 5)] and "| vitalk | 3.12 | 9.5× |" in done.stdout
    kept = json.loads((tmp_path / "new" / "b.json").read_text())
    assert kept == record | {"command": kept["command"]}
    assert (tmp_path / "new" / "b.md").read_text().strip() == done.stdout.strip()
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_speech_refuses_its_output_before_it_measures(tmp_path, monkeypatch):
    from vitalk.deploy import speech_contest

    monkeypatch.setattr(speech_contest, "compare", lambda *_: 1 / 0)
    (tmp_path / "file").write_text("")
    for output, message in (
        (tmp_path / "file" / "b.json", "cannot be written to"),
        (tmp_path / "b.md", "names the JSON file"),
        (tmp_path, "names the JSON file"),
    ):
        with pytest.raises(UserError, match=message):
            run_speech("-o", output)
    with pytest.raises(ZeroDivisionError):
        run_speech("-o", tmp_path / "b.json")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
