"""Every system's folder looks like the others, and the catalog knows it."""

from pathlib import Path

import pytest

from vitalk import catalog
from vitalk.measurement import Measurement, checkout

ROOT = checkout()
FOLDERS = sorted(path.parent for path in (ROOT / "src" / "vitalk" / "systems").glob("*/*.py"))
NAMES = sorted({folder.name for folder in FOLDERS})
FILES = sorted((ROOT / "src").rglob("*.py"))


def test_the_catalog_knows_every_folder():
    assert set(NAMES) <= {system.folder.name for system in catalog.SYSTEMS}
    assert {system.folder.name for system in catalog.SYSTEMS if system.works} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_system_has_page_recipe_measurement_and_test(name):
    folder = ROOT / "src" / "vitalk" / "systems" / name
    for path in (folder / "__init__.py", folder / "recipe.yaml", folder / "reproduce.py"):
        assert path.is_file(), path
    assert (ROOT / "tests" / "systems" / f"test_{name}.py").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_page_names_its_paper(name):
    system = next(system for system in catalog.SYSTEMS if system.folder.name == name)
    assert system.arxiv in (system.folder / "__init__.py").read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_a_file_is_read_in_one_sitting(path: Path):
    assert len(path.read_text().splitlines()) < 400


def test_results_of_systems_are_measurements():
    for system in catalog.SYSTEMS:
        if (path := ROOT / "results" / f"{system.slug}.json").is_file():
            kept = Measurement.load(path)
            assert system.works and kept.command.startswith(f"vitalk reproduce {system.slug}") and kept.machine
