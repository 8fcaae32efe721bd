"""The tables of the README follow from catalog and results, and the README is in step with them."""

import json

import pytest

from vitalk import measurement, report
from vitalk.errors import UserError
from vitalk.measurement import Measurement


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "results_dir", lambda: tmp_path)
    return tmp_path


def test_the_readme_is_in_step():
    text = (measurement.checkout() / "README.md").read_text()
    assert report.fill(text) == text, "run `make tables`"
    for name in report.TABLES:
        assert f"<!-- vitalk:{name} -->" in text


def test_renewing_replaces_only_what_is_between_the_markers(results):
    text = "before\n<!-- vitalk:bench -->\nold\n<!-- /vitalk -->\nafter\n"
    once = report.fill(text)
    assert once.startswith("before\n<!-- vitalk:bench -->\n") and once.endswith("<!-- /vitalk -->\nafter\n")
    assert "old" not in once and "`vitalk bench vision`" in once
    assert report.fill(once) == once


def test_an_unknown_marker_is_named():
    with pytest.raises(UserError, match="'bnech'"):
        report.fill("<!-- vitalk:bnech -->\n<!-- /vitalk -->")


def test_the_systems_table_names_all_64(results):
    table = report.systems_table()
    assert table.count("https://arxiv.org/abs/") == 64
    assert "0 of them bear out" in table


def test_a_reproduced_system_is_ticked_and_its_figures_shown(results):
    m = Measurement("a | b", "1 %", "2 %", "3 %", "reproduced", "d", {}, "vitalk reproduce evit", 120.0)
    m.save(results / "evit.json")
    assert "[evit](https://arxiv.org/abs/2202.07800) ✓" in report.systems_table()
    row = report.reproduction_table().splitlines()[-1]
    assert r"a \| b | 1 % | 2 % | 3 % | reproduced | `vitalk reproduce evit` (2 min) |" in row


def test_the_bench_table_formats_ratios_fractions_and_gaps(results):
    rows = [
        {"name": "eager", "batch": 1, "images_per_second": 81.234, "ratio_to_eager": 1.0, "peak_fraction": None},
        {"name": "int8", "batch": 32, "images_per_second": 1234.5, "ratio_to_eager": 4.567, "peak_fraction": 0.613},
    ]
    record = {"machine": "EPYC, 2 cores", "command": "vitalk bench vision", "rows": rows}
    (results / "bench_vision.json").write_text(json.dumps(record))
    assert report.record_table("bench_vision", "vitalk bench vision").splitlines() == [
        "| name | batch | images per second | ratio to eager | peak fraction |",
        "| --- | --- | --- | --- | --- |",
        "| eager | 1 | 81.2 | 1× | – |",
        "| int8 | 32 | 1234 | 4.57× | 61% |",
        "",
        "Measured by `vitalk bench vision` on EPYC, 2 cores.",
    ]


def test_a_record_without_rows_lists_its_figures(results):
    (results / "eye.json").write_text(json.dumps({"test_accuracy": 0.91234, "parameters": 1800000, "machine": "m"}))
    table = report.record_table("eye", "vitalk train eye")
    assert "| test accuracy | 0.912 |" in table and "| parameters, M | 1.80 |" in table and "on m." in table


def test_main_renews_the_readme_of_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "checkout", lambda: tmp_path)
    (tmp_path / "README.md").write_text("<!-- vitalk:systems -->\n<!-- /vitalk -->\n")
    report.main()
    assert "t2t-vit" in (tmp_path / "README.md").read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["README.md"]
