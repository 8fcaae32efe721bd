"""Models by name or file, with their preprocessing and labels."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitalk.deploy.preprocess import Preprocess
from vitalk.errors import UserError
from vitalk.vision.checkpoints import load_matching
from vitalk.vision.classifier import create, stored_model


@dataclass
class Loaded:
    """A model in eval mode, its preprocessing, its labels where they are known, and the name it was asked by."""

    model: nn.Module
    preprocess: Preprocess
    labels: list[str] | None
    name: str


def load_model(name: str, pretrained: bool = True) -> Loaded:
    """A timm model, ``hf-hub:NAME``, a ``.safetensors`` file or Lightning checkpoint of ``vitalk train``.

    pretrained: False gives a timm model random weights. ``vitalk_eye`` is the embedded model with its weights.
    Raises UserError for names and files that do not exist or do not fit, and for weights that are not finite.
    """
    if name == "vitalk_eye" and pretrained:
        name = str(Path(str(resources.files("vitalk"))) / "assets" / "eye.safetensors")
    if name.endswith((".safetensors", ".ckpt", ".pt", ".pth")):
        if not Path(name).is_file():
            raise UserError(f"there is no checkpoint at {name}; check the path")
        loaded = _from_safetensors(name) if name.endswith(".safetensors") else _from_lightning(name)
    else:
        loaded = _from_timm(name, pretrained)
    for key, value in loaded.model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{name} holds NaN or infinite weights ({key}); use an intact checkpoint")
    return loaded


def _from_timm(name: str, pretrained: bool) -> Loaded:
    try:
        model = create(name, None, {"pretrained": pretrained}).eval()
    except UserError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"the weights of {name} could not be fetched ({reason}); check name and network") from None
    cfg = model.pretrained_cfg
    return Loaded(model, Preprocess.from_timm_cfg(cfg), cfg.get("label_names"), name)


def _from_safetensors(path: str) -> Loaded:
    model, meta = stored_model(path)
    preprocess = Preprocess.from_timm_cfg(json.loads(meta["preprocess"]))
    return Loaded(model, preprocess, json.loads(meta["labels"]), meta["model"])


def _from_lightning(path: str) -> Loaded:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        h = checkpoint["hyper_parameters"]
        state = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
    except Exception as error:
        raise UserError(f"{path} is not a checkpoint of vitalk train ({type(error).__name__})") from None
    data = checkpoint.get("datamodule_hyper_parameters", {})
    cfg = {k: data[k] for k in ("interpolation", "crop_pct", "mean", "std") if k in data}
    cfg["input_size"] = (3, data.get("size", 224), data.get("size", 224))
    args = {**(h.get("model_args") or {}), "num_classes": h["num_classes"]}
    model = create(h["model"], args.pop("num_classes"), {**args, "pretrained": False})
    load_matching(model, state, path)
    return Loaded(model.eval(), Preprocess.from_timm_cfg(cfg), None, h["model"])


def timm_transform(preprocess: Preprocess) -> Callable[[Any], Tensor]:
    """timm's own evaluation transform for the same preprocessing; what the file's transform is checked against."""
    from timm.data import create_transform

    return create_transform(
        (3, *preprocess.size), is_training=False, interpolation=preprocess.interpolation, mean=preprocess.mean,
        std=preprocess.std, crop_pct=preprocess.crop_pct, crop_mode=preprocess.crop_mode,
    )  # fmt: skip
