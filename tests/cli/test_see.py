"""The verb ``see``, as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def vitalk(*args):
    code = "from vitalk.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)


def test_names_what_it_sees_without_torch():
    code = "import sys; from vitalk.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, "see", EXAMPLES / "truck.png", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (seen,) = json.loads(done.stdout).values()
    assert len(seen) == 5 and seen[0]["probability"] >= seen[1]["probability"]


def test_several_pictures_in_words():
    done = vitalk("see", EXAMPLES / "truck.png", EXAMPLES / "cat.png", "-k", 2)
    assert done.returncode == 0 and done.stdout.count("%") == 4


@pytest.mark.parametrize("case", ["missing", "text", "model", "engine"])
def test_bad_input_is_one_sentence_and_exit_code_2(case, tmp_path):
    (tmp_path / "text.jpg").write_text("words")
    picture = EXAMPLES / "truck.png"
    args = {
        "missing": [tmp_path / "none.jpg"], "text": [tmp_path / "text.jpg"],
        "model": [picture, "--model", "eie"], "engine": [picture, "--engine", "openvin"],
    }[case]  # fmt: skip
    done = vitalk("see", *args)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("vitalk: ") and len(done.stderr.strip().splitlines()) == 1
