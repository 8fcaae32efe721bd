"""The official repository's checkpoints (ArieSeirack/DHVT), renamed to ours."""

import math
import re
from typing import TYPE_CHECKING, Any

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from vitalk.nn.checkpoints import renamed, unwrapped

if TYPE_CHECKING:
    from .model import DHVTWithMlp

DAFF = {"1": "expand", "2": "depthwise", "3": "project"}
RENAMES = (
    (r"^patch_embed\.(pre_affine|post_affine)\.", r"patch_embed.proj.\1."),
    (r"^patch_embed\.proj\.(\d)", r"patch_embed.proj.convs.\1"),
    (r"\.mlp\.conv([123])\.", lambda found: f".mlp.{DAFF[found[1]]}.0."),
    (r"\.mlp\.bn([123])\.", lambda found: f".mlp.{DAFF[found[1]]}.1."),
)
ATTENTION = re.compile(r"^(blocks\.\d+\.attn\.)((?:qkv|proj)\..*)")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: "DHVTWithMlp") -> dict[str, Tensor]:
    """An official checkpoint of any variant as a state dict of ``model``; one of ours passes through.

    Takes whole training checkpoints with or without ``module.``. A table of absolute positions, which only the
    ablations have, is resized bicubically where the model's pictures have another size.
    """
    # A training checkpoint also holds averaged weights, but the authors evaluate and fine-tune the others.
    state = convert(unwrapped(state_dict, averaged=False))
    table, own = state.get("pos_embed"), model.pos_embed
    if table is not None and own is not None and table.shape[1] != own.shape[1]:
        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        patches = table.shape[1] - prefix
        if patches > 0 and math.isqrt(patches) ** 2 == patches:  # the table of a picture that was square
            state["pos_embed"] = resample_abs_pos_embed(
                table, list(model.patch_embed.grid_size), num_prefix_tokens=prefix, antialias=False
            )
    return state


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; what is ours already stays as it is."""
    out = {}
    for name, value in state.items():
        new = renamed(name, RENAMES)
        # Attention with head tokens holds a plain one, which is all there is where they are off.
        if (found := ATTENTION.match(name)) and f"{found[1]}ht_proj.weight" in state:
            new = f"{found[1]}mhsa.{found[2]}"
        out[new] = value
    return out
