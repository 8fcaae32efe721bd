"""Measurements are kept whole, found again, and never half written."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalk import measurement
from vitalk.errors import UserError
from vitalk.measurement import Measurement


def make(**changes):
    fields = {
        "claim": "35 % fewer MACs at -0.3 points",
        "published": "79.5 %",
        "measured": "81.0 %",
        "baseline": "81.2 %",
        "verdict": "reproduced",
        "data": "CIFAR-10",
        "details": {"seeds": [0, 1]},
    }
    return Measurement(**{**fields, **changes})


@given(claim=st.text(), seconds=st.floats(0, 1e6), details=st.dictionaries(st.text(), st.integers() | st.text()))
def test_what_is_saved_is_loaded(tmp_path_factory, claim, seconds, details):
    kept = make(claim=claim, seconds=seconds, details=details)
    path = tmp_path_factory.mktemp("results") / "deeper" / "evit.json"
    assert Measurement.load(kept.save(path)) == kept


def test_scalars_of_numpy_become_numbers(tmp_path):
    path = make(details={"accuracy": np.float32(0.5)}).save(tmp_path / "m.json")
    assert json.loads(path.read_text())["details"]["accuracy"] == 0.5


@pytest.mark.parametrize("broken", ["serialising", "renaming"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken):
    path = make(measured="old").save(tmp_path / "m.json")
    if broken == "renaming":
        monkeypatch.setattr(measurement.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises((TypeError, UserError)):
        make(details={} if broken == "renaming" else {"x": object()}).save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.json"]
    assert Measurement.load(path).measured == "old"


def test_verdicts_are_the_three_known_ones():
    with pytest.raises(ValueError, match=r"verdict.*'great'"):
        make(verdict="great")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"claim": "c", "surprise": 1}', "3"])
def test_other_files_are_refused_by_name(tmp_path, text):
    path = tmp_path / "evit.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"evit\.json is not a measurement"):
        Measurement.load(path)


def test_summary_has_the_figures_and_skips_what_is_empty():
    lines = make().summary().splitlines()
    assert "published  79.5 %" in lines and "verdict    reproduced" in lines
    assert not any(line.startswith("machine") for line in lines)


def test_results_are_in_the_checkout_and_elsewhere_in_the_working_directory(tmp_path, monkeypatch):
    root = Path(measurement.__file__).parents[2]
    assert measurement.results_dir() == root / "results"
    monkeypatch.setattr(measurement, "__file__", str(tmp_path / "lib" / "site-packages" / "vitalk" / "measurement.py"))
    monkeypatch.chdir(tmp_path)
    assert measurement.checkout() is None
    assert measurement.results_dir() == tmp_path / "results"


def test_ones_own_measurement_goes_before_the_one_that_ships(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "vitalk"
    monkeypatch.setattr(measurement, "__file__", str(package / "measurement.py"))
    monkeypatch.chdir(tmp_path)
    assert measurement.find("evit") is None
    make(measured="shipped").save(package / "results" / "evit.json")
    assert measurement.find("evit").measured == "shipped"
    make(measured="mine").save(tmp_path / "results" / "evit.json")
    assert measurement.find("evit").measured == "mine"


def test_the_machine_is_one_line_with_cores_and_versions():
    line = measurement.machine()
    assert "\n" not in line and " core" in line and "Python 3" in line
