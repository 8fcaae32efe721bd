"""Checkpoints of the released code (CatworldLee/Gaussian-Mixture-Mask-Attention), renamed to ours, host by host."""

from typing import Any

import torch
from torch import Tensor, nn

from vitalk.nn.checkpoints import Renames, renamed, unwrapped

PRENORM = (  # of the hosts whose layers are pairs of (attention, MLP), each behind a norm
    (r"\.0\.norm\.", ".norm1."),
    (r"\.1\.norm\.", ".norm2."),
    (r"\.0\.fn\.to_qkv\.", ".attn.qkv."),
    (r"\.0\.fn\.to_out\.0\.", ".attn.proj."),
    (r"\.0\.fn\.mask\.", ".attn.mask."),
    (r"\.1\.fn\.net\.0\.", ".mlp.fc1."),
    (r"\.1\.fn\.net\.3\.", ".mlp.fc2."),
)
MASK = ((r"\.attn\.mask\.mask$", ".attn.mask.weight"), (r"\.attn\.mask\.", ".attn.matmul1.mask."))


def vit_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """An official checkpoint of the ViT host, with or without mask, as a state dict of ``model``; ours pass through."""
    norm = "norm" if isinstance(model.fc_norm, nn.Identity) else "fc_norm"
    names = (
        (r"^transformer\.layers\.(\d+)\.", r"blocks.\1."),
        (r"^mlp_head\.0\.", f"{norm}."),
        (r"^mlp_head\.1\.", "head."),
        (r"^pos_embedding$", "pos_embed"),
        (r"^to_patch_embedding\.1\.", "patch_embed.proj."),
        *PRENORM,
        *MASK,
    )
    return _patches_as_convolution(_renamed(state_dict, names), model)


def cait_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """An official checkpoint of the CaiT host as a state dict of ``model``; ours pass through."""
    names = (
        (r"^patch_transformer\.layers\.", "blocks."),
        (r"^cls_transformer\.layers\.", "blocks_token_only."),
        (r"\.([01])\.scale$", lambda found: f".gamma_{int(found[1]) + 1}"),
        (r"\.([01])\.fn\.(norm|fn)\.", r".\1.\2."),
        (r"\.0\.fn\.(to_kv|to_q)\.weight$", r".attn.\1"),
        (r"\.0\.fn\.mix_heads_pre_attn$", ".attn.proj_l.weight"),
        (r"\.0\.fn\.mix_heads_post_attn$", ".attn.proj_w.weight"),
        (r"^mlp_head\.0\.", "norm."),
        (r"^mlp_head\.1\.", "head."),
        (r"^pos_embedding$", "pos_embed"),
        (r"^to_patch_embedding\.1\.", "patch_embed.proj."),
        *PRENORM,
        *MASK,
    )
    official = any(key.endswith("mix_heads_pre_attn") for key in unwrapped(state_dict, averaged=False))
    state = _patches_as_convolution(_renamed(state_dict, names), model)
    for key in list(state):
        if ".gamma_" in key:
            state[key] = state[key].flatten()
        elif official and key.endswith((".proj_l.weight", ".proj_w.weight")):
            state[key] = state[key].T
        elif key.endswith(".to_kv"):
            query = key.replace(".to_kv", ".to_q")
            state[key.replace(".to_kv", ".qkv.weight")] = torch.cat([state.pop(query), state.pop(key)])
    return state


def pit_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """An official checkpoint of the PiT host as a state dict of ``model``; ours pass through."""
    names = (  # stages and poolings take turns in the official list
        (r"^layers\.(\d+)\.layers\.(\d+)\.", lambda found: f"transformers.{int(found[1]) // 2}.blocks.{found[2]}."),
        (r"^layers\.(\d+)\.downsample\.net\.", lambda found: f"transformers.{int(found[1]) // 2 + 1}.pool.conv."),
        (r"^layers\.(\d+)\.cls_ff\.", lambda found: f"transformers.{int(found[1]) // 2 + 1}.pool.fc."),
        (r"^mlp_head\.0\.", "norm."),
        (r"^mlp_head\.1\.", "head."),
        (r"^to_patch_embedding\.0\.", "patch_embed.proj."),
        *PRENORM,
        *MASK,
    )
    state = _renamed(state_dict, names)
    if (table := state.pop("pos_embedding", None)) is not None:
        state["transformers.0.pool.position"] = table[:, :1]
        state["pos_embed"] = table[:, 1:].transpose(1, 2).unflatten(2, model.patch_embed.grid_size)
    return state


def swin_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """An official checkpoint of the Swin host as a state dict of ``model``; ours pass through."""
    official = "absolute_pos_embed" in unwrapped(state_dict, averaged=False)
    names = MASK
    if official:  # merged at the end of a stage there, at the beginning of the next here
        names = (
            (r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) + 1}.downsample."),
            (r"^head\.", "head.fc."),
            (r"^absolute_pos_embed$", "patch_embed.pos_embed"),
            *MASK,
        )
    state = _renamed(state_dict, names)
    return {key: v for key, v in state.items() if not key.endswith(("relative_position_index", "attn_mask"))}


def t2t_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """An official checkpoint of the T2T host as a state dict of ``model``; ours pass through.

    The fixed positions, and the class token and the norm that the official code keeps and never uses, are left out.
    """
    last = len(model.patch_embed.stages) - 1
    names = (
        (r"^tokens_to_token\.attention(\d)\.", lambda found: f"patch_embed.stages.{int(found[1]) - 1}.layer."),
        (r"^tokens_to_token\.project\.", f"patch_embed.stages.{last}.layer."),
        *MASK,
    )
    state = _renamed(state_dict, names)
    unused = ("pos_embed", "cls_token", "tokens_to_token.norm.weight", "tokens_to_token.norm.bias")
    return {key: value for key, value in state.items() if key not in unused}


def _renamed(state_dict: dict[str, Any], names: Renames) -> dict[str, Tensor]:
    """All entries under new names, mixtures without their two empty axes, and without the fixed distance tables."""
    out = {}
    for key, value in unwrapped(state_dict, averaged=False).items():
        if key.rpartition(".")[2] == "mask" and value.ndim == 4:
            continue
        key = renamed(key, names)
        out[key] = value.flatten(1) if key.endswith((".mask.sigma", ".mask.alpha")) else value
    return out


def _patches_as_convolution(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights over patches that were flattened as (row, column, channel), as a convolution's."""
    key = "patch_embed.proj.weight"
    if key in state and state[key].ndim == 2:
        rows, columns = model.patch_embed.patch_size
        state[key] = state[key].unflatten(1, (rows, columns, -1)).permute(0, 3, 1, 2)
    return state
