"""Checkpoints of the ViR release (anom63931/ViR) and of a reimplementation, renamed to ours."""

import math
import re
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from vitalk.nn.checkpoints import unwrapped

if TYPE_CHECKING:
    from .model import VisionRetention

RELEASE = ((".retention.qkv.", ".attn.qkv."), (".retention.out_proj.", ".attn.proj."))
REIMPLEMENTATION = (
    (".ln1.", ".norm1."),
    (".ln2.", ".norm2."),
    (".retention.ln.", ".attn.post.0."),
    (".retention.linear.", ".attn.proj."),
    (".mlp.linear1.", ".mlp.fc1."),
    (".mlp.linear2.", ".mlp.fc2."),
    ("patch_embed.", "patch_embed.proj."),
)
HEAD = re.compile(r"^(blocks\.\d+)\.retention\.heads\.(\d+)\.qkv\.(weight|bias)$")
BUFFERS = re.compile(r"(^|\.)(decay_mask|causal_mask|dim_sqrt|decay_gammas|decay_gammas_mask)$")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: "VisionRetention") -> dict[str, Tensor]:
    """An official checkpoint as a state dict of ``model``; one of ours passes through.

    Takes whole training checkpoints, of which the averaged weights are preferred, with or without ``module.``:
    the release's, and those of BrianPulfer/vision-retention-networks, whose heads project their own slices alone; the
    full projection gets zeros elsewhere. That design is ``post="ln_gelu", schedule="retnet", init_values=None,
    global_pool="final", norm_layer=nn.LayerNorm, num_classes=0``.

    Position tables are resized where the picture size differs; the reimplementation's, which belong to a sequence and
    no grid, are cut. An entry for the class token (the release's ``no_embed_class=False``) goes into that token, and
    a class token that the release stores but never reads (``avg``, ``final``) is left out.
    """
    state = {key: value for key, value in unwrapped(state_dict).items() if not BUFFERS.search(key)}
    if "patch_embed.weight" in state:
        state = _from_reimplementation(state, model.pos_embed.shape[1])
    for old, new in RELEASE:
        state = {key.replace(old, new): value for key, value in state.items()}
    if model.cls_token is None:
        state.pop("cls_token", None)
    if "pos_embed" in state:
        _fit_positions(state, model)
    return state


def _from_reimplementation(state: dict[str, Tensor], patches: int) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    heads: dict[str, list[Tensor]] = {}
    for key, value in state.items():
        if found := HEAD.match(key):
            heads.setdefault(f"{found[1]}.attn.qkv.{found[3]}", []).append(value)
            continue
        if key.startswith("ln."):
            key = f"norm.{key.removeprefix('ln.')}"
        for old, new in REIMPLEMENTATION:
            key = key.replace(old, new)
        out[key] = value
    for key, values in heads.items():
        # Each head holds its queries, keys and values one after the other; the full projection, all queries first.
        parts = zip(*(value.chunk(3) for value in values), strict=True)
        join = torch.block_diag if key.endswith("weight") else lambda *x: torch.cat(x)
        out[key] = torch.cat([join(*part) for part in parts])
    out["pos_embed"] = out["pos_embed"][:, :patches]
    return out


def _fit_positions(state: dict[str, Tensor], model: "VisionRetention") -> None:
    table, patches = state["pos_embed"], model.pos_embed.shape[1]
    last = model.mixing.class_token != "first"
    if "cls_token" in state and _has_class_entry(table.shape[1], patches):
        place = slice(-1, None) if last else slice(0, 1)
        state["cls_token"] = state["cls_token"] + table[:, place]
        table = table[:, :-1] if last else table[:, 1:]
    if table.shape[1] != patches and math.isqrt(table.shape[1]) ** 2 == table.shape[1]:
        grid = list(model.patch_embed.grid_size)
        table = resample_abs_pos_embed(table, grid, num_prefix_tokens=0)
    state["pos_embed"] = table


def _has_class_entry(length: int, patches: int) -> bool:
    def square(n: int) -> bool:
        return math.isqrt(n) ** 2 == n

    return length == patches + 1 or (length != patches and not square(length) and square(length - 1))
