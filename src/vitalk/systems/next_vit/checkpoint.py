"""The official repository's checkpoints (bytedance/Next-ViT), renamed to timm's names."""

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn import checkpoints
from vitalk.vision.checkpoints import load_matching

SIZES = {20: "nextvit_small", 30: "nextvit_base", 40: "nextvit_large"}  # by blocks
RENAMES = ((".mlp.conv1.", ".mlp.fc1."), (".mlp.conv2.", ".mlp.fc2."), ("proj_head.0.", "head.fc."))


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """An official checkpoint as a state dict of ``model``, timm's Next-ViT or ours; one of timm passes through.

    Takes whole training checkpoints, with or without ``module.``, and the backbone out of those of detectors and
    segmenters. Blocks are counted through in official names, so they land in the stages that the model has; a
    checkpoint of another variant shows as entries of another shape (``load_matching`` names the first).

    The official code folds norms into weights in place (``merge_bn``) and leaves the norms in the state dict: a
    checkpoint that was saved after that looks like any other and is of no use. The released ones are not folded.
    """
    places = [f"stages.{i}.blocks.{j}." for i, stage in enumerate(model.stages) for j in range(len(stage.blocks))]

    def renamed(name: str) -> str:
        if found := re.match(r"features\.(\d+)\.", name):
            number = int(found[1])
            name = (places[number] if number < len(places) else found[0]) + name[found.end() :]
        for old, new in RENAMES:
            name = name.replace(old, new)
        return name

    return {renamed(name): value for name, value in unwrapped(state_dict).items()}


def unwrapped(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the network in a training checkpoint, or in one of a detector or segmenter built on it."""
    state = checkpoints.unwrapped(state_dict)
    inner = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    return inner or state


def from_official(source: str | Path | Mapping[str, Any], **kwargs: Any) -> nn.Module:
    """timm's Next-ViT with the weights of an official classification checkpoint, in eval mode.

    source: the file, or what it holds. Variant and number of classes are read off it. kwargs: for
    ``timm.create_model``, such as ``drop_path_rate``.
    Raises UserError for a file that is missing, unreadable or of no published variant, and for entries that do not fit.
    """
    import timm

    name = "the checkpoint" if isinstance(source, Mapping) else str(source)
    state = unwrapped(source if isinstance(source, Mapping) else _read(Path(source)))
    blocks = {key.split(".")[1] for key in state if key.startswith("features.")}
    if len(blocks) not in SIZES or "proj_head.0.weight" not in state:
        raise UserError(
            f"{name} is no official Next-ViT classifier: it has {len(blocks)} blocks named features.* and "
            f"{'a' if 'proj_head.0.weight' in state else 'no'} proj_head; those have 20, 30 or 40 and a head"
        )
    model = timm.create_model(SIZES[len(blocks)], num_classes=len(state["proj_head.0.weight"]), **kwargs)
    load_matching(model, checkpoint_filter_fn(state, model), name)
    return model.eval()


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}")
    try:
        with torch.serialization.safe_globals([Namespace]):  # the arguments of the run lie beside the weights
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read as a checkpoint ({type(error).__name__}); download it again") from None
