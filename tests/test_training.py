"""Runs: recipes, resuming after a kill, and several processes."""

import csv
import inspect
import os
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from lightning import LightningModule
from safetensors import safe_open
from safetensors.torch import load_file

from vitalk.errors import UserError
from vitalk.files import write_tensors
from vitalk.measurement import checkout
from vitalk.recipes import load_recipe
from vitalk.training import run

RUN = (
    "import sys; from pathlib import Path; from vitalk.training import run; "
    "run(sys.argv[1], 'tiny', None, Path(sys.argv[2]), sys.argv[3:])"
)


@pytest.fixture
def recipe(tmp_path, picture_folder):
    config = {
        "seed_everything": 0,
        "model": {
            "class_path": "vitalk.vision.classifier.Classifier",
            "init_args": {
                "model": "vit_tiny_patch16_224", "lr": 3e-3, "optimizer": "sgd", "optimizer_args": {"momentum": 0.9},
                "model_args": {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
            },
        },
        "data": {
            "class_path": "vitalk.vision.data.Images",
            "init_args": {"path": str(picture_folder), "size": 16, "batch_size": 4, "workers": 0, "augment": False},
        },
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1,
                    "enable_progress_bar": False, "enable_model_summary": False},
    }  # fmt: skip
    path = tmp_path / "colours.yaml"
    path.write_text(yaml.safe_dump({"presets": {"tiny": config}}))
    return path


def command(recipe, folder, *overrides):
    return [sys.executable, "-c", RUN, str(recipe), str(folder), *overrides]


def losses(folder: Path) -> dict[int, float]:
    """Step -> training loss over all the versions of a run's log, later ones winning."""
    found = {}
    for log in sorted((folder / "csv").glob("*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1])):
        for row in csv.DictReader(log.open()):
            if row.get("train/loss"):
                found[int(row["step"])] = float(row["train/loss"])
    return found


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def test_unknown_presets_and_recipes_are_refused(recipe):
    with pytest.raises(UserError, match="no preset tinny"):
        load_recipe(str(recipe), "tinny")
    with pytest.raises(UserError, match="no recipe"):
        load_recipe("nowhere.yaml", "tiny")


def test_bad_data_and_bad_overrides_end_in_a_sentence_and_leave_nothing(recipe, tmp_path, picture_folder, capsys):
    folder = tmp_path / "run"
    one = tmp_path / "one"
    shutil.copytree(next(p for p in picture_folder.iterdir() if p.is_dir()), one / "only")
    with pytest.raises(UserError, match="one class only"):
        run(str(recipe), "tiny", str(one), folder, [])
    with pytest.raises(SystemExit):
        run(str(recipe), "tiny", None, folder, ["--trainer.nonsense=1"])
    assert "nonsense" in capsys.readouterr().err
    assert not folder.exists()


KILLED = """
import os, signal
from vitalk.vision.classifier import Classifier

learn = Classifier.training_step


def training_step(self, batch, index):
    if self.global_step == int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return learn(self, batch, index)


Classifier.training_step = training_step
"""


@pytest.mark.parametrize("kill_at", [5, 14])
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(recipe, tmp_path, kill_at):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run(command(recipe, whole), check=True, env=environment(), capture_output=True)
    doomed = command(recipe, cut)
    doomed[2] = f"exec({KILLED!r}); {RUN[:-1]}, interval=2)"
    killed = subprocess.run(doomed, env={**environment(), "KILL_AT": str(kill_at)}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-500:]
    assert (cut / "last.ckpt").exists() and not (cut / "model.safetensors").exists()
    subprocess.run(command(recipe, cut), check=True, env=environment(), capture_output=True)
    expected, got = losses(whole), losses(cut)
    assert max(got) == max(expected)
    assert all(got[step] == pytest.approx(expected[step], rel=1e-4) for step in got)
    a, b = load_file(whole / "model.safetensors"), load_file(cut / "model.safetensors")
    assert all(torch.allclose(a[key], b[key], rtol=1e-4, atol=1e-6) for key in a)


def test_two_processes_give_the_curve_of_one_with_the_doubled_batch(recipe, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    subprocess.run(
        command(recipe, one, "--data.init_args.batch_size=8"), check=True, env=environment(), capture_output=True
    )
    options = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    script = tmp_path / "go.py"
    script.write_text("if __name__ == '__main__':\n    " + RUN)
    subprocess.run([sys.executable, script, recipe, two, *options], check=True, env=environment(), capture_output=True)
    expected, got = losses(one), losses(two)
    assert expected.keys() == got.keys() and len(got) > 10
    for step, loss in got.items():
        assert loss == pytest.approx(expected[step], rel=1e-4), f"step {step}"


def test_the_model_file_describes_itself(recipe, tmp_path):
    subprocess.run(command(recipe, tmp_path / "run"), check=True, env=environment(), capture_output=True)
    with safe_open(tmp_path / "run" / "model.safetensors", "pt") as file:
        meta = file.metadata()
    assert meta["model"] == "vit_tiny_patch16_224" and yaml.safe_load(meta["labels"]) == ["blue", "green", "red"]
    assert list((tmp_path / "run" / "tensorboard").rglob("events*")), "TensorBoard logs are written"


class Counting(LightningModule):
    """Its only weight counts the steps; its validation loss is least after the second epoch."""

    MONITOR = "val/loss"

    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.count = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, _):
        self.count.data += 1
        return 0 * self.count.sum()

    def validation_step(self, batch, _):
        self.log("val/loss", abs(self.current_epoch - 1.0))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def save_weights(self, path, data):
        write_tensors(path, self.state_dict(), {})


@pytest.mark.parametrize("cut", [False, True])
def test_the_weights_of_the_least_validation_loss_are_kept(recipe, tmp_path, cut):
    presets = yaml.safe_load(recipe.read_text())
    presets["presets"]["tiny"]["model"] = {"class_path": "tests.test_training.Counting"}
    recipe.write_text(yaml.safe_dump(presets))
    folder = tmp_path / "run"
    if cut:
        run(str(recipe), "tiny", None, folder, ["--trainer.max_epochs=2"], 2)
    run(str(recipe), "tiny", None, folder, ["--trainer.max_epochs=4"], 3)  # another interval, one last.ckpt
    steps = 48 // 4
    assert load_file(folder / "model.safetensors")["count"].item() == 2 * steps
    assert torch.load(folder / "last.ckpt", weights_only=False)["global_step"] == 4 * steps
    assert not list(folder.glob("*-v*.ckpt"))


@pytest.mark.parametrize(
    ("file", "preset"),
    [
        ("eye/eye", "cpu"),
        ("eye/eye", "finish"),
        *(("voice/voice", p) for p in ("aligner", "acoustic", "vocoder", "tune")),
    ],
)
def test_recipes_of_what_ships_name_classes_and_arguments_that_there_are(file, preset):
    _, config = load_recipe(str(checkout() / "recipes" / f"{file}.yaml"), preset)
    for part in ("model", "data"):
        module, _, name = config[part]["class_path"].rpartition(".")
        kinds = inspect.getmro(getattr(import_module(module), name))  # options are handed on to the class above
        known = {argument for kind in kinds for argument in inspect.signature(kind.__init__).parameters}
        assert set(config[part].get("init_args", {})) <= known
