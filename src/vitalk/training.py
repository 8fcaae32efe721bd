"""Runs and resuming: what ``vitalk train`` does, for sight and speech alike.

A recipe names a LightningModule and a LightningDataModule. Three conventions beside Lightning's own: what the data
module lists in ``PROVIDES`` (``num_classes``) goes to the model's argument of that name, where it has one; the trained
module writes its own weights, ``module.save_weights(path, datamodule)``; and where it names a validation loss as
``MONITOR``, these are the weights with the least of it, kept as best.ckpt, instead of the last ones.
"""

import inspect
import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import LightningModule
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from vitalk.errors import UserError
from vitalk.recipes import load_recipe


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints written under another name and renamed, so that a kill never leaves half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: D102
        unfinished = f"{path}.writing"
        try:
            super().save_checkpoint(checkpoint, unfinished, storage_options)
            os.replace(unfinished, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            Path(unfinished).unlink(missing_ok=True)
            raise UserError(f"the checkpoint {path} could not be written ({error}); free space or use -o") from None


def _cli(config: dict[str, Any]) -> type[LightningCLI]:
    """LightningCLI whose model learns from the data what the data module provides."""
    model, data = (_class(config[part]["class_path"]) for part in ("model", "data"))
    links = [name for name in getattr(data, "PROVIDES", ()) if name in inspect.signature(model).parameters]

    class TrainCLI(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            for name in links:
                parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    return TrainCLI


def _class(path: str) -> type:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"the recipe names {path}, which cannot be imported ({error})") from None


def arguments_of(module: LightningModule) -> dict[str, Any]:
    """What a module was built with, without the notes that LightningCLI keeps among its hyperparameters."""
    return {key: value for key, value in module.hparams.items() if not key.startswith("_")}


def _named_sentence(error: BaseException | None) -> UserError | None:
    """The UserError that a parser's error was made of, None where there is none."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def run(
    name: str, preset: str, data: str | None, output: Path | None, overrides: list[str], interval: int = 100
) -> Path:
    """Train, or go on where the last checkpoint of the run folder stands; returns the trained model's file.

    interval: steps between checkpoints.
    """
    short, config = load_recipe(name, preset)
    folder = Path(output or Path("runs") / short)
    fresh = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if data is not None:
        config["data"].setdefault("init_args", {})["path"] = data
    configured = folder / "recipe.yaml"
    configured.write_text(yaml.safe_dump(config, sort_keys=False))
    try:
        cli = _cli(config)(
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            trainer_defaults=_trainer_defaults(
                folder, interval, getattr(_class(config["model"]["class_path"]), "MONITOR", None)
            ),
            save_config_callback=None,
            args=["--config", str(configured), *overrides],
        )
    except (Exception, SystemExit) as error:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        if (sentence := _named_sentence(error)) is not None:
            raise sentence from None
        raise
    last = folder / "last.ckpt"
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=last if last.exists() else None, weights_only=False)
    target = folder / "model.safetensors"
    if cli.trainer.is_global_zero:
        if (best := folder / "best.ckpt").exists():
            cli.model.load_state_dict(torch.load(best, "cpu", weights_only=False)["state_dict"])
        cli.model.save_weights(target, cli.datamodule)
        print(f"trained model: {target}")
    return target


def _trainer_defaults(folder: Path, interval: int, monitor: str | None) -> dict[str, Any]:
    best = [ModelCheckpoint(folder, filename="best", monitor=monitor, enable_version_counter=False)] if monitor else []
    return {
        "default_root_dir": folder,
        "logger": [TensorBoardLogger(folder, name="tensorboard"), CSVLogger(folder, name="csv")],
        "callbacks": [
            ModelCheckpoint(  # one last.ckpt, also where a run goes on with another interval
                folder,
                filename="{step}",
                every_n_train_steps=interval,
                save_last=True,
                save_top_k=1,
                enable_version_counter=False,
            ),
            LearningRateMonitor("step"),
            *best,
        ],
        "plugins": [WholeCheckpoints()],
        "use_distributed_sampler": False,
        "log_every_n_steps": 10,
        "num_sanity_val_steps": 0,
    }
