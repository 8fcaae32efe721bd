"""DIMAP's fine-tuning: masks that nothing revives, runs that go on, and recipes."""

from importlib import resources

import pytest
import timm
import torch
import yaml
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from vitalk.deploy.load import load_model
from vitalk.errors import UserError
from vitalk.systems.dimap import Masks, PrunedClassifier, SlimClassifier, dimap
from vitalk.systems.dimap.slim import shape
from vitalk.systems.dimap.training import load_trained
from vitalk.training import run

SMALL = {"embed_dim": 8, "num_heads": (1, 2, 4), "img_size": 16, "window_size": 2}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A file of weights, as a run leaves one."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("trained") / "model.safetensors"
    save_file(timm.create_model("dimap_swin_cifar", **SMALL, num_classes=3).state_dict(), path)
    return str(path)


def classifier(trained=None, kind=PrunedClassifier, **kwargs):
    options = {"num_classes": 3, "lr": 1e-2, "weight_decay": 0.5, **kwargs}
    return kind("dimap_swin_cifar", init=trained, model_args=SMALL, **options)


def fit(module, epochs=2, resume=None, **kwargs):
    torch.manual_seed(0)
    data = [(torch.randn(3, 16, 16), i % 3) for i in range(16)]
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=epochs, enable_model_summary=False, **options, **kwargs)
    loader = DataLoader(data, batch_size=4)
    trainer.fit(module, loader, loader, ckpt_path=resume, weights_only=False)
    return trainer


def state_of(module):
    return {name: value.clone() for name, value in module.model.state_dict().items()}


class Watched(PrunedClassifier):
    """Notes how many pruned weights have come alive, wherever they are used."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.revived, self.looked = 0, 0

    def look(self):
        if self.masks is not None:
            self.looked += 1
            weights = {name: self.model.get_submodule(name).weight for name in self.masks.kept}
            self.revived += sum(int((w[~self.masks.kept[n]] != 0).sum()) for n, w in weights.items())

    def training_step(self, batch, index):
        self.look()
        return super().training_step(batch, index)

    def validation_step(self, batch, index):
        self.look()
        super().validation_step(batch, index)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("prune_epoch, averaged", [(0, False), (1, True)])
def test_nothing_revives_a_pruned_weight(trained, optimizer, prune_epoch, averaged):
    args = {"momentum": 0.9} if optimizer == "sgd" else None
    module = classifier(
        trained, Watched, rate=0.7, optimizer=optimizer, optimizer_args=args, prune_epoch=prune_epoch
    )  # fmt: skip
    before = state_of(module)
    average = [EMAWeightAveraging(decay=0.9)] if averaged else []
    fit(module, 3, callbacks=average, gradient_clip_val=1.0)
    assert module.looked > 10 and module.revived == 0
    assert module.masks.sparsity == pytest.approx(0.7, abs=1e-3)
    kept = Masks.of(module.model).kept
    assert all(torch.equal(mask, module.masks.kept[name]) for name, mask in kept.items())
    after = module.model.state_dict()
    assert all(not torch.equal(after[f"{name}.weight"], before[f"{name}.weight"]) for name in kept)


def test_averages_that_began_before_the_cut_are_masked_without_validation_too(trained, tmp_path):
    module = classifier(trained, rate=0.7, prune_epoch=1)
    states = []

    class Save(Callback):
        def on_train_epoch_end(self, trainer, _):
            trainer.save_checkpoint(tmp_path / "now.ckpt")
            states.append(torch.load(tmp_path / "now.ckpt", weights_only=False)["state_dict"])

    fit(module, 2, callbacks=[EMAWeightAveraging(decay=0.9), Save()], limit_val_batches=0)
    for name, kept in module.masks.kept.items():
        assert (module.model.get_submodule(name).weight[~kept] == 0).all()
        assert (states[1][f"model.{name}.weight"][~kept] == 0).all() and (states[0][f"model.{name}.weight"] != 0).all()


def test_masks_are_those_of_one_shot_and_stay(trained):
    module = classifier(trained, rate=0.6, ranking="lamp")
    alone = classifier(trained).model
    expected = dimap(alone, 0.6, ranking="lamp").kept
    fit(module)
    assert all(torch.equal(mask, module.masks.kept[name]) for name, mask in expected.items())


def test_gradients_of_pruned_weights_do_not_count_when_clipped(trained):
    module = classifier(trained, rate=0.9)
    module.masks = dimap(module.model, 0.9)
    module.model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    name, kept = next(iter(module.masks.kept.items()))
    gradient = module.model.get_submodule(name).weight.grad
    before = gradient.clone()
    module.on_before_optimizer_step(None)
    assert (before[~kept] != 0).any() and (gradient[~kept] == 0).all() and torch.equal(gradient[kept], before[kept])


def test_taylor_takes_its_gradients_from_the_training_pictures(trained):
    module = classifier(trained, rate=0.5, ranking="taylor")
    fit(module, 1)
    other = classifier(trained, rate=0.5)
    fit(other, 1)
    assert module.masks.sparsity == other.masks.sparsity
    assert any(not torch.equal(mask, other.masks.kept[name]) for name, mask in module.masks.kept.items())


@pytest.mark.parametrize("averaged, ranking, of", [(False, "random", "macs"), (True, "module", "weights")])
def test_a_resumed_run_keeps_its_masks(trained, tmp_path, averaged, ranking, of):
    average = lambda: [EMAWeightAveraging(decay=0.9)] if averaged else []  # noqa: E731
    options = {"rate": 0.5, "prune_epoch": 1, "ranking": ranking, "of": of}
    module = classifier(trained, **options)
    trainer = fit(module, 2, callbacks=average())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=False)["state_dict"]
    for name, kept in module.masks.kept.items():
        assert (saved[f"model.{name}.weight"][~kept] == 0).all()
    again = classifier(trained, Watched, **options)
    fit(again, 4, resume=tmp_path / "half.ckpt", callbacks=average())
    assert again.looked > 4 and again.revived == 0
    assert all(torch.equal(mask, again.masks.kept[name]) for name, mask in module.masks.kept.items())


def test_a_run_resumed_within_an_epoch_keeps_its_masks(trained, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "six.ckpt")

    module = classifier(trained, rate=0.6)
    fit(module, 2, callbacks=[Save()])
    again = classifier(trained, Watched, rate=0.6)
    fit(again, 2, resume=tmp_path / "six.ckpt")
    assert again.looked >= 2 and again.revived == 0
    assert all(torch.equal(mask, again.masks.kept[name]) for name, mask in module.masks.kept.items())


def test_a_run_resumed_before_the_cut_is_cut_in_its_time(trained, tmp_path):
    module = classifier(trained, rate=0.7, prune_epoch=2)
    fit(module, 1).save_checkpoint(tmp_path / "early.ckpt")
    assert module.masks is None
    again = classifier(trained, rate=0.7, prune_epoch=2)
    fit(again, 3, resume=tmp_path / "early.ckpt")
    assert again.masks.sparsity == pytest.approx(0.7, abs=1e-3)


def test_random_weights_are_not_worth_pruning():
    with pytest.raises(UserError, match="dimap_swin_cifar has random weights, which are not worth pruning"):
        fit(classifier(), 1)
    with pytest.raises(UserError, match="dimap_swin_cifar has random weights"):
        classifier(kind=SlimClassifier)
    assert classifier(prune_epoch=1).masks is None


def test_official_swin_checkpoints_bring_their_patch_merging(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("dimap_swin_cifar", **SMALL, num_classes=3)
    own = model.state_dict()
    official = {}
    for key, value in own.items():  # there a stage ends with merging, in timm it begins with it
        if "downsample" in key:
            stage = int(key.split(".")[1])
            key = key.replace(f"layers.{stage}", f"layers.{stage - 1}")
        official[key.replace("head.fc", "head")] = value
    other = timm.create_model("dimap_swin_cifar", **SMALL, num_classes=3)
    torch.save({"model": official}, tmp_path / "swin.pth")
    load_trained(other, str(tmp_path / "swin.pth"))
    assert all(torch.equal(value, own[name]) for name, value in other.state_dict().items())


# Runs


def overrides(*more):
    return [
        "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
        "--trainer.limit_val_batches=1", "--data.init_args.size=16", "--data.init_args.batch_size=16",
        "--data.init_args.workers=0", *more,
    ]  # fmt: skip


def test_vitalk_train_prunes_fine_tunes_and_slims(tmp_path, picture_folder):
    small = "--model.init_args.model_args={embed_dim: 8, num_heads: [1, 2, 4], img_size: 16, window_size: 2}"
    dense = run("dimap", "tiny", str(picture_folder), tmp_path / "tiny", overrides(small))
    assert Masks.of(load_model(str(dense)).model).sparsity == pytest.approx(0.7, abs=1e-3)
    init = f"--model.init_args.init={dense}"
    tuned = run("dimap", "finetune", str(picture_folder), tmp_path / "finetune",
                overrides(small, init, "--model.init_args.rate=0.8"))  # fmt: skip
    assert Masks.of(load_model(str(tuned)).model).sparsity == pytest.approx(0.8, abs=1e-3)
    slimmed = run("dimap", "slim", str(picture_folder), tmp_path / "slim", overrides(small, init))
    loaded, plain = load_model(str(slimmed)), timm.create_model("dimap_swin_cifar", **SMALL, num_classes=3)
    assert sum(shape(loaded.model)["hidden"]) < sum(shape(plain)["hidden"])
    assert loaded.model(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    checkpoint = load_model(str(tmp_path / "slim" / "last.ckpt")).model
    assert shape(checkpoint) == shape(loaded.model)


def test_every_preset_names_a_model_and_arguments_that_exist():
    presets = yaml.safe_load(resources.files("vitalk.systems.dimap").joinpath("recipe.yaml").read_text())["presets"]
    assert set(presets) == {"tiny", "cpu", "finetune", "slim", "paper"}
    for preset in presets.values():
        options = preset["model"]["init_args"]
        assert timm.is_model(options["model"].split(".")[0])
        size = preset["data"]["init_args"]["size"]
        args = {k: v for k, v in options.get("model_args", {}).items() if k != "pretrained"}
        with torch.device("meta"):
            model = timm.create_model(options["model"], **args)
        assert model.patch_embed.img_size == (size, size)
    assert (
        presets["paper"]["model"]["init_args"] | {"rate": 0.525, "of": "macs"} == presets["paper"]["model"]["init_args"]
    )
