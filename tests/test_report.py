"""The tables of README and docs follow from catalog and results, and are in step with them."""

import json

import pytest

from vitalk import measurement, report
from vitalk.errors import UserError
from vitalk.measurement import Measurement


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "results_dir", lambda: tmp_path)
    return tmp_path


def test_readme_and_docs_are_in_step():
    texts = {path: path.read_text() for path in report.documents(measurement.checkout())}
    for path, text in texts.items():
        assert report.fill(text) == text, f"{path} is behind: run `make tables`"
    for name in report.TABLES:
        assert sum(f"<!-- vitalk:{name} -->" in text for text in texts.values()) == 1


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
    row = report.verdict_table().splitlines()[-1]
    assert row.endswith(r"| a \| b | reproduced | `vitalk reproduce evit` (2 min) |")
    told = report.reproduction_sections()
    assert told.startswith("## [evit](https://arxiv.org/abs/2202.07800): reproduced")
    assert all(
        f"| {name} | {said} |" in told for name, said in (("published", "1 %"), ("measured", "2 %"), ("data", "d"))
    )
    assert "machine" not in told  # as it is not known


def test_nothing_measured_is_said(results):
    assert report.verdict_table() == report.reproduction_sections() == report.NOTHING
    assert report.accuracy_table("bench_quant", "do it") == "Not measured yet: `do it`."


def test_accuracies_stand_by_method_and_bits(results):
    cells = (("float", "W32A32", 91.2), ("omse", "W8A8", 91.0), ("repq-vit", "W8A8", 90.0), ("repq-vit", "W4A4", 86.53))
    rows = [{"method": method, "bits": bits, "top1": top1} for method, bits, top1 in cells]
    told = {"machine": "m", "command": "c", "rows": rows}
    (results / "bench_quant.json").write_text(json.dumps(told))
    lines = report.accuracy_table("bench_quant", "").splitlines()
    assert lines[2:4] == ["| omse | 91.00 | – |", "| repq-vit | 90.00 | 86.53 |"]
    assert lines[-1] == "In float 91.20. Measured by `c` on m."


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
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "more.md").write_text("<!-- vitalk:systems -->\n<!-- /vitalk -->\n")
    report.main()
    for name in ("README.md", "docs/more.md"):
        assert "t2t-vit" in (tmp_path / name).read_text()
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["README.md", "docs", "more.md"]
