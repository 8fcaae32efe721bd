"""`vitalk systems` lists what there is and shows one system's page without importing it."""

import json

import pytest
from typer.testing import CliRunner

from vitalk import catalog, measurement
from vitalk.cli import systems
from vitalk.errors import UserError
from vitalk.measurement import Measurement


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "results_dir", lambda: tmp_path)
    return tmp_path


def run(*args):
    result = CliRunner().invoke(systems.app, list(args))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_lists_all_with_status_and_title(results):
    out = run()
    for system in catalog.SYSTEMS:
        line = next(line for line in out.splitlines() if line.startswith(f"{system.slug} "))
        assert system.title in line and system.arxiv in line and catalog.status(system) in line


def test_shows_measured_against_published(results):
    Measurement("claim", "79.5 %", "81.0 %", "b", "reproduced", "d", {}).save(results / "evit.json")
    assert "81.0 % (published: 79.5 %): reproduced" in run()


@pytest.mark.parametrize(
    ("family", "count"), [("speech", 25), ("quantization", 8), ("vision / search", 3), ("multimodal", 5)]
)
def test_family_is_a_family_a_group_or_both(results, family, count):
    assert len(json.loads(run("--family", family, "--json"))) == count


def test_json_holds_every_field(results):
    rows = json.loads(run("--json"))
    assert len(rows) == 64
    row = next(row for row in rows if row["slug"] == "evit")
    assert row["arxiv"] == "2202.07800" and row["family"] == "vision / token reduction" and row["status"] == "works"


def test_status_keeps_the_others_out(results):
    works = {row["slug"] for row in json.loads(run("--status", "works", "--json"))}
    planned = {row["slug"] for row in json.loads(run("--status", "planned", "--json"))}
    assert "evit" in works and not works & planned and len(works | planned) == 64


def test_show_prints_page_recipe_and_result(results):
    Measurement("claim", "79.5 %", "81.0 %", "b", "reproduced", "d", {}).save(results / "evit.json")
    out = run("show", "evit")
    assert out.startswith("evit: Not All Patches are What You Need")
    assert "keep the patches that the class token attends to" in out
    assert "published  79.5 %" in out
    if (recipe := catalog.find("evit").folder / "recipe.yaml").is_file():
        assert recipe.read_text().splitlines()[0] in out


def test_show_of_a_planned_system_ends_with_its_paper(results, monkeypatch):
    monkeypatch.setattr(catalog.System, "works", False)
    out = run("show", "seed-tts")
    assert "https://arxiv.org/abs/2406.02430, status: planned" in out and "reproduce" not in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--family", "quantisation"), "Did you mean quantization"),
        (("--status", "done"), "planned, works, reproduced.*'done'"),
        (("show", "evitt"), "Did you mean evit"),
    ],
)
def test_unknown_names_are_refused(results, args, message):
    with pytest.raises(UserError, match=message):
        run(*args)
