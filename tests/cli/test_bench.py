"""The verbs of ``vitalk bench``: what they write, and what they refuse before they measure."""

import json

import pytest

from vitalk.errors import UserError


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


def test_backbones_are_known_by_name(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from vitalk.benchmarks import backbones
    from vitalk.cli.bench import app

    asked = []
    monkeypatch.setattr(backbones, "contest", lambda *given: asked.append(given) or {"rows": [{"ratio": 1.5}]})

    def run(*args):
        return CliRunner().invoke(app, ["backbones", *map(str, args)], catch_exceptions=False)

    done = run("--only", "tic", "--only", "vir", "--repeats", 2, "-o", tmp_path / "b.json")
    assert asked == [(["tic", "vir"], 2)] and "1.5×" in done.stdout
    with pytest.raises(UserError, match="--only resnet is not measured"):
        run("--only", "resnet", "-o", tmp_path / "c.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.json", "b.md"]


def test_vision_refuses_its_output_before_it_measures(tmp_path):
    from typer.testing import CliRunner

    from vitalk.cli.bench import app

    with pytest.raises(UserError, match="names the JSON file"):
        CliRunner().invoke(app, ["vision", "-o", str(tmp_path / "b.md")], catch_exceptions=False)
