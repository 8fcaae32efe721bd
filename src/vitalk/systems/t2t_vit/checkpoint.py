"""The official repository's checkpoints (yitu-opensource/T2T-ViT), renamed to ours."""

from typing import TYPE_CHECKING, Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from vitalk.nn.checkpoints import renamed, unwrapped

if TYPE_CHECKING:
    from .model import T2TViT

# Of the token layers first, whose names are a part of the backbone's, then of the squeeze-excite blocks.
RENAMES = (
    (r"^tokens_to_token\.attention(\d+)\.", lambda found: f"patch_embed.stages.{int(found[1]) - 1}.layer."),
    (r"^tokens_to_token\.soft_split(\d+)\.", r"patch_embed.stages.\1."),
    (r"^(patch_embed\.stages\.\d+\.layer)\.attn\.", r"\1."),
    (r"^(patch_embed\.stages\.\d+\.layer)\.kqv\.", r"\1.qkv."),
    (r"^(patch_embed\.stages\.\d+\.layer)\.w$", r"\1.features.projection"),
    (r"^(patch_embed\.stages\.\d+\.layer\.mlp)\.0\.", r"\1.fc1."),
    (r"^(patch_embed\.stages\.\d+\.layer\.mlp)\.2\.", r"\1.fc2."),
    (r"\.attn\.se_layer\.fc\.0\.", ".ls1.reduce."),
    (r"\.attn\.se_layer\.fc\.2\.", ".ls1.expand."),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: "T2TViT") -> dict[str, Tensor]:
    """An official checkpoint as a state dict of ``model``; one of ours passes through.

    Takes whole training checkpoints, of which the averaged weights are preferred, with or without ``module.``.
    The position table is resized to the model's where the picture size differs, and filled in where it is missing.

    The attention scale is not part of a checkpoint: the released files need ``qk_scale=embed_dim**-0.5`` on the
    model, which the constructors set themselves for ``pretrained=True``.
    """
    state = convert(unwrapped(state_dict))
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    table = state.get("pos_embed", model.pos_embed)
    if table.shape[1] != model.pos_embed.shape[1]:
        table = resample_abs_pos_embed(
            table, list(model.patch_embed.grid_size), num_prefix_tokens=prefix, antialias=False
        )
    state["pos_embed"] = table
    return state


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names and layouts to ours; what is ours already stays as it is."""
    out = {}
    last = "patch_embed.stages.2."
    for name, value in state.items():
        new = renamed(name, RENAMES)
        if name.startswith("tokens_to_token.project."):
            convolution = state["tokens_to_token.project.weight"].ndim == 4
            new = last + ("" if convolution else "layer.") + name.rpartition(".")[2]
        if ".kqv." in name:
            k, q, v = value.chunk(3)
            value = torch.cat([q, k, v])
        out[new] = value
    return _merge_ghosts(out)


def _merge_ghosts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Three projections and three or two depthwise convolutions of a ghost block -> one projection, one table."""
    ghosts = [
        key.removesuffix("mlp.cheap_operation2.weight") for key in state if key.endswith(".cheap_operation2.weight")
    ]
    for block in ghosts:

        def gather(*names: str, block: str = block) -> list[Tensor]:
            return [state.pop(f"{block}{name}.weight") for name in names]

        primary = torch.cat(gather("attn.q", "attn.k", "attn.v"))
        cheap = gather(*(f"attn.cheap_operation_{name}" for name in "qkv"))
        state[f"{block}attn.qkv.primary.weight"] = primary
        state[f"{block}attn.qkv.cheap"] = torch.stack([weight.flatten() for weight in cheap])
        cheap = gather("mlp.cheap_operation2", "mlp.cheap_operation3")
        state[f"{block}mlp.cheap"] = torch.stack([weight.flatten() for weight in cheap])
    return state
