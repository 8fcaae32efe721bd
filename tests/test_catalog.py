"""The list of the systems, and what their status follows from."""

import re
from collections import Counter

import pytest

from vitalk import catalog, measurement
from vitalk.errors import UserError
from vitalk.measurement import Measurement


def test_holds_the_64_systems_once_each():
    assert len(catalog.SYSTEMS) == 64
    for field in ("slug", "title", "arxiv", "package"):
        assert len({getattr(system, field) for system in catalog.SYSTEMS}) == 64, field


def test_shelves_hold_as_many_as_the_design_says():
    assert Counter(system.shelf for system in catalog.SYSTEMS) == {
        "vision / backbones": 8,
        "vision / token reduction": 5,
        "vision / dynamic and cheap inference": 4,
        "vision / quantization": 8,
        "vision / search": 3,
        "vision / training": 4,
        "vision / robustness": 2,
        "speech / acoustic models": 7,
        "speech / zero-shot and style": 8,
        "speech / language models": 7,
        "speech / corpora and evaluation": 3,
        "multimodal": 5,
    }


@pytest.mark.parametrize("system", catalog.SYSTEMS, ids=lambda system: system.slug)
def test_every_entry_is_well_formed(system):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", system.slug)
    assert re.fullmatch(r"\d{4}\.\d{5}", system.arxiv)
    assert system.title == system.title.strip() and len(system.title) > 20


def test_package_and_folder_follow_from_the_slug():
    system = catalog.find("repq-vit")
    assert system.package == "vitalk.systems.repq_vit"
    assert system.folder.parts[-3:] == ("vitalk", "systems", "repq_vit")


def test_unknown_slug_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"'evti'.*Did you mean evit"):
        catalog.find("evti")


def test_status_is_derived_from_folder_and_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "results_dir", lambda: tmp_path)
    evit, seed = catalog.find("evit"), catalog.find("seed-tts")
    assert catalog.status(evit) == "works"
    for verdict, status in (("not reproduced", "works"), ("direction only", "works"), ("reproduced", "reproduced")):
        Measurement("c", "1", "2", "3", verdict, "d", {}).save(tmp_path / "evit.json")
        assert catalog.status(evit) == status
    monkeypatch.setattr(catalog.System, "works", False)
    assert catalog.status(seed) == "planned"
