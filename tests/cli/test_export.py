"""The verb ``export``."""

import resource
import subprocess
import sys

import pytest

from vitalk.cli.export import export
from vitalk.deploy.runtime import Eye
from vitalk.errors import UserError

TINY = "vit_tiny_patch16_224"


def test_a_timm_model_becomes_a_file_that_sees(tmp_path):
    labels = tmp_path / "labels.json"
    labels.write_text(str([f"thing {i}" for i in range(1000)]).replace("'", '"'))
    export(TINY, tmp_path / "m.onnx", labels, random_weights=True)
    eye = Eye.load(tmp_path / "m.onnx")
    assert eye.preprocess.size == (224, 224) and eye.labels[7] == "thing 7"


def test_bad_input(tmp_path):
    with pytest.raises(UserError, match="Did you mean vit_tiny_patch16_224"):
        export("vit_tiny_patch16_22", tmp_path / "m.onnx", None, True)
    with pytest.raises(UserError, match="no folder"):
        export(TINY, tmp_path / "none" / "m.onnx", None, True)
    (tmp_path / "labels.json").write_text("not json")
    with pytest.raises(UserError, match="class names"):
        export(TINY, tmp_path / "m.onnx", tmp_path / "labels.json", True)


def test_a_full_disk_leaves_nothing(tmp_path):
    code = "from vitalk.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "export", TINY, "-o", tmp_path / "m.onnx", "--random-weights"],
        capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-800:]
    assert done.stderr.strip().splitlines()[-1].startswith("vitalk: ") and list(tmp_path.iterdir()) == []
