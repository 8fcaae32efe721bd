"""Recipes, runs and resuming: what ``vitalk train`` does."""

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from vitalk.errors import UserError, nearest


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


class TrainCLI(LightningCLI):
    """LightningCLI whose model learns the number of classes from the data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:  # noqa: D102
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")


def load_recipe(name: str, preset: str) -> tuple[str, dict[str, Any]]:
    """(short name, LightningCLI configuration) of a system's recipe or of a recipe file.

    Raises UserError for systems, files and presets that do not exist.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"there is no recipe at {name}")
        text, short = Path(name).read_text(), Path(name).stem
    else:
        from vitalk.catalog import find

        system = find(name)
        if not system.works:
            raise UserError(f"{name} is planned, not built; vitalk systems --status works lists what can be trained")
        text, short = resources.files(system.package).joinpath("recipe.yaml").read_text(), name
    presets = (yaml.safe_load(text) or {}).get("presets", {})
    if preset not in presets:
        raise UserError(f"{name} has no preset {preset}; it has {', '.join(presets)}.{nearest(preset, list(presets))}")
    return f"{short}-{preset}", presets[preset]


def run(
    name: str, preset: str, data: str | None, output: Path | None, overrides: list[str], interval: int = 100
) -> Path:
    """Train, or go on where the last checkpoint of the run folder stands; returns the trained model's file.

    interval: steps between checkpoints.
    """
    short, config = load_recipe(name, preset)
    folder = Path(output or Path("runs") / short)
    folder.mkdir(parents=True, exist_ok=True)
    if data is not None:
        config["data"].setdefault("init_args", {})["path"] = data
    configured = folder / "recipe.yaml"
    configured.write_text(yaml.safe_dump(config, sort_keys=False))
    cli = TrainCLI(
        subclass_mode_model=True,
        subclass_mode_data=True,
        run=False,
        trainer_defaults=_trainer_defaults(folder, interval),
        save_config_callback=None,
        args=["--config", str(configured), *overrides],
    )
    last = folder / "last.ckpt"
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=last if last.exists() else None, weights_only=False)
    target = folder / "model.safetensors"
    if cli.trainer.is_global_zero:
        save_model(cli.model, cli.datamodule, target)
        print(f"trained model: {target}")
    return target


def _trainer_defaults(folder: Path, interval: int) -> dict[str, Any]:
    return {
        "default_root_dir": folder,
        "logger": [TensorBoardLogger(folder, name="tensorboard"), CSVLogger(folder, name="csv")],
        "callbacks": [
            ModelCheckpoint(folder, filename="{step}", every_n_train_steps=interval, save_last=True, save_top_k=1),
            LearningRateMonitor("step"),
        ],
        "plugins": [WholeCheckpoints()],
        "use_distributed_sampler": False,
        "log_every_n_steps": 10,
        "num_sanity_val_steps": 0,
    }


def save_model(classifier: Any, data: Any, path: Path) -> None:
    """Write the weights as safetensors whose metadata names the model, its preprocessing and its labels."""
    from safetensors.torch import save_file

    h = classifier.hparams
    meta = {
        "model": h.model,
        "model_args": json.dumps(dict(h.model_args or {})),
        "preprocess": json.dumps(data.preprocess_cfg()),
        "labels": json.dumps(data.classes),
    }
    state = {k: v.detach().cpu().contiguous() for k, v in classifier.model.state_dict().items()}
    unfinished = path.with_suffix(".writing")
    save_file({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}, unfinished, meta)
    os.replace(unfinished, path)
