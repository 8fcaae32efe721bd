"""Official checkpoints: the release's DeiT, ViT and Swin are Hugging Face models with ``highway`` exits."""

import re
from typing import Any

from timm.models import swin_transformer, vision_transformer
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from vitalk.nn.checkpoints import joined, renamed, unwrapped

# In order; the first that matches a part of the name replaces it.
NAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^encoder\.layers\.(\d+)\.blocks\.", r"layers.\1.blocks."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"attention\.(?:attention|self)\.", "attn."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"\boutput\.dense\.", "mlp.fc2."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"^layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
HEAD_NAMES = (
    (r"^classifier\.(?=layernorm|pooler|classifier|cls_classifier|distillation_classifier)", ""),
    (r"^mlp\.", "body."),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.dense\.", "pool.0."),
    (r"^(?:cls_)?classifier\.", "classifiers.0."),
    (r"^distillation_classifier\.", "classifiers.1."),
)
IGNORED = re.compile(r"^pooler\.|mask_token$|relative_position_index$|position_ids$")
HIGHWAY = re.compile(r"^encoder\.(?:layers\.(\d+)\.)?highway\.(\d+)\.(.+)$")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """An official, Hugging Face, timm or own checkpoint -> the state dict of ``model``, an ``LGViT``.

    The release's poolers, which nothing reads, and Swin's index tables go. Positions and patches are resized to the
    model's grid, bicubically. Checkpoints without exits give a dict without them.
    """
    state = unwrapped(state_dict, averaged=False)
    state = {key.removeprefix("trunk.vit."): value for key, value in state.items()}
    if any(re.match(r"(?:\w+\.)?encoder\.layers?\.\d", key) for key in state):
        state = _from_hugging_face(state, isinstance(model.vit, SwinTransformer))
    exits = {key: value for key, value in state.items() if key.startswith("exits.")}
    plain = {key: value for key, value in state.items() if key not in exits}
    if (own := getattr(model.vit, "checkpoint_filter_fn", None)) is not None:
        return own(plain, model.vit) | exits
    if isinstance(model.vit, SwinTransformer):
        return swin_transformer.checkpoint_filter_fn(plain, model.vit) | exits
    return vision_transformer.checkpoint_filter_fn(plain, model.vit, True, antialias=False) | exits


def _from_hugging_face(state: dict[str, Tensor], swin: bool) -> dict[str, Tensor]:
    base = re.compile(r"^(?:deit|vit|swin)\.")
    if any(base.match(key) for key in state):  # the release's Swin of the second stage has an idle norm beside its base
        state = {base.sub("", key): value for key, value in state.items() if not key.startswith("layernorm.")}
    found = {key: m for key in state if (m := HIGHWAY.match(key))}
    places = sorted({_place(m) for m in found.values()})
    bodies = {_place(m): False for m in found.values() if m[3].startswith("mlp.")}
    bodies |= {_place(m): True for m in found.values() if m[3].startswith("mlp.qkv.")}
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if IGNORED.search(key):
            continue
        if (m := found.get(key)) is not None:
            key = f"exits.{places.index(_place(m))}.{_head_name(m[3], bodies.get(_place(m)))}"
        elif merging := re.match(r"^encoder\.layers\.(\d+)\.downsample\.(.+)$", key):
            key = f"layers.{int(merging[1]) + 1}.downsample.{merging[2]}"  # timm merges where a stage begins
        else:
            key = renamed(key, NAMES)
            key = re.sub(r"^head\.", "head.fc.", key) if swin else key
        out[key] = value
    return joined(out, r"\.attn\.(query|key|value)\.", ".attn.qkv.", ("query", "key", "value"))


def _place(highway: re.Match[str]) -> tuple[int, int]:
    return int(highway[1] or 0), int(highway[2])  # stage, and number in the stage


def _head_name(name: str, attends: bool | None) -> str:
    """attends: whether the head's body is attention; None for linear heads, which have no body."""
    name = renamed(name, HEAD_NAMES)
    if name.startswith("layer."):  # ViT-EE's own transformer layer
        return renamed(name, NAMES)
    if attends is None:
        return re.sub(r"^norm\.", "pool.", name)
    return re.sub(r"^body\.", "body.attn.", name) if attends else name
