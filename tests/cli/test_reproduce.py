"""`vitalk reproduce` measures, notes how, and keeps the result."""

import sys
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from vitalk import catalog, measurement
from vitalk.cli.reproduce import reproduce
from vitalk.errors import UserError
from vitalk.measurement import Measurement

MODULE = "vitalk.systems.evit.reproduce"


@pytest.fixture
def results(tmp_path, monkeypatch):
    folder = tmp_path / "results"
    monkeypatch.setattr(measurement, "results_dir", lambda: folder)
    return folder


def run(*args):
    app = typer.Typer()
    app.command()(reproduce)
    result = CliRunner().invoke(app, list(args))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_measures_prints_and_keeps(results, tmp_path, monkeypatch):
    asked = []

    def measure(minutes, data):
        asked.append((minutes, data))
        return Measurement("35 % fewer MACs", "79.5 %", "81.0 %", "81.2 %", "direction only", "CIFAR-10", {})

    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(measure=measure))
    out = run("evit", "--minutes", "0.5", "--data", str(tmp_path))
    assert asked == [(0.5, tmp_path)]
    for line in ("35 % fewer MACs", "79.5 %", "81.0 %", "direction only"):
        assert line in out
    kept = Measurement.load(results / "evit.json")
    assert kept.command == f"vitalk reproduce evit --minutes 0.5 --data {tmp_path}"
    assert " core" in kept.machine and kept.seconds >= 0


def test_a_failed_measurement_keeps_nothing(results, tmp_path, monkeypatch):
    def measure(minutes, data):
        raise UserError("there is no data at X; set VITALK_DATA")

    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(measure=measure))
    with pytest.raises(UserError, match="VITALK_DATA"):
        run("evit", "--data", str(tmp_path))
    assert not results.exists()


def test_a_missing_package_is_named_with_the_remedy(results, tmp_path, monkeypatch):
    def measure(minutes, data):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(measure=measure))
    with pytest.raises(UserError, match=r"needs the package torch: pip install 'vitalk\[train\]'"):
        run("evit", "--data", str(tmp_path))


def test_planned_systems_are_refused(results, monkeypatch):
    monkeypatch.setattr(catalog.System, "works", False)
    with pytest.raises(UserError, match="seed-tts is planned"):
        run("seed-tts")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("evti",), "Did you mean evit"),
        (("evit", "--minutes", "0"), "--minutes must be a number above 0, got 0"),
        (("evit", "--minutes", "nan"), "got nan"),
        (("evit", "--data", "/nowhere/at/all"), "no folder /nowhere/at/all"),
    ],
)
def test_bad_input_is_refused(results, args, message):
    with pytest.raises(UserError, match=message):
        run(*args)
    assert not results.exists()
