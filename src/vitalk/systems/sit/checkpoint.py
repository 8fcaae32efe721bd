"""The official repository's checkpoints (Sense-X/SiT), LV-ViT's and SiT's, renamed to ours."""

import re
from typing import TYPE_CHECKING, Any

import torch
from timm.models.vision_transformer import checkpoint_filter_fn as timm_filter
from torch import Tensor

from vitalk.vision.tokens import Trunk

if TYPE_CHECKING:
    from .model import LVViT
    from .slimming import SiT

STEM = re.compile(r"^patch_embed\.(?=(?:conv|bn)\d\.)")
TSM = re.compile(r"^tsm\.(\d+)\.")
TRAINING = ("aux_head.", "rtsm.")  # what nothing needs at inference


def lvvit_filter(state_dict: dict[str, Any], model: "LVViT") -> dict[str, Tensor]:
    """An official checkpoint as a state dict of ``model``; one of ours passes through.

    The auxiliary head and reverse slimming modules are left out, the position of a distillation token, which the
    release keeps apart, moves into the table, and positions are resized bicubically to the grid of the model.
    """
    state = {STEM.sub("patch_embed.proj.", key): value for key, value in unwrapped(state_dict).items()}
    if (extra := state.pop("dist_pos_embed", None)) is not None:
        table = state["pos_embed"]
        state["pos_embed"] = torch.cat([table[:, :1], extra, table[:, 1:]], 1)
    return timm_filter(state, model, antialias=False)


def sit_filter(state_dict: dict[str, Any], model: "SiT") -> dict[str, Tensor]:
    """An official checkpoint as a state dict of the slimmed ``model``: slimming module i goes to the block it follows.

    Checkpoints of un-slimmed networks, which have no such modules, come out without them.
    """
    blocks = model.slimmed_blocks

    def place(found: re.Match[str]) -> str:
        i = int(found[1])
        return f"reducers.{blocks[i]}." if i < len(blocks) else found[0]

    state = Trunk.checkpoint_filter_fn(unwrapped(state_dict), model)
    return {TSM.sub(place, key): value for key, value in state.items()}


def unwrapped(state_dict: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a training checkpoint under plain names, without those that only training needs."""
    for key in ("model", "state_dict"):
        state_dict = state_dict.get(key, state_dict)
    named = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return {key: value for key, value in named.items() if not key.startswith(TRAINING)}
