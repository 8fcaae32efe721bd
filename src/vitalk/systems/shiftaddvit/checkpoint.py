"""Official and dense checkpoints on a converted model's own names."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as timm_filter
from torch import Tensor, nn

from vitalk.nn.checkpoints import renamed, unwrapped

from .experts import MoELinear
from .hashing import KernelHash
from .shift import _Shift

# (official, ours); the stages of PVTv2 have timm's names
NAMES = (
    (r"^patch_embed1\.", "patch_embed."),
    (r"^patch_embed(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.downsample."),
    (r"^block(\d)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}."),
    (r"^norm(\d)\.(weight|bias)$", lambda m: f"stages.{int(m[1]) - 1}.norm.{m[2]}"),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
    (r"\.qk_quant\.ksh\.", ".codes."),
    (r"\.gate\.gate\.", ".router."),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint of the release, or of the dense model, -> the state dict of ``model``, which ``shiftadd`` made.

    Official entries are renamed; the release's hashing counts as fitted, as it has no flag, and gates of all three
    kinds become the router (without learned noise). Where the model has shifts, experts, shared or separate
    projections and the checkpoint has the dense layer, they are made from it, as in the training's stages. What a
    dense checkpoint cannot know (routers, convolutions over values, hashing) keeps the model's own values, and the
    spatial reduction that the model gave up is dropped.
    """
    state = unwrapped(state_dict, averaged=False)
    if "patch_embed1.proj.weight" in state:
        state = {renamed(key, NAMES): value for key, value in state.items() if not key.endswith("projection_matrix")}
    elif isinstance(model, VisionTransformer):
        state = timm_filter(state, model, True, antialias=False)
    own = model.state_dict()
    for name, module in model.named_modules():
        if hasattr(module, "proj") and hasattr(module, "num_heads"):
            _projections(state, name, own)
    for name, module in model.named_modules():
        if isinstance(module, MoELinear):
            _gate(state, f"{name}.gate.", f"{name}.router.")
            _experts(state, name)
    for name, module in model.named_modules():
        if isinstance(module, _Shift):
            _shifts(state, name, module)
        if isinstance(module, KernelHash) and f"{name}.A" in state:
            state.setdefault(f"{name}.fitted", torch.tensor(True))
    new = re.compile(r"\.(router|dconv|codes)\.\w+$")
    state |= {key: value for key, value in own.items() if key not in state and new.search(key)}
    gone = re.compile(r"\.attn\.(sr|norm|q|kv|qkv|to_qk|to_v)\.")
    return {key: value for key, value in state.items() if key in own or not gone.search(key)}


def _projections(state: dict[str, Tensor], name: str, own: Mapping[str, Tensor]) -> None:
    """q and kv, or to_qk and to_v, out of a joint qkv, and so on: whichever the model has."""
    for kind in ("weight", "bias"):
        given = {part: state.get(f"{name}.{part}.{kind}") for part in ("qkv", "q", "kv")}
        if given["qkv"] is None and given["q"] is not None and given["kv"] is not None:
            given["qkv"] = torch.cat([given["q"], given["kv"]])
        if (joint := given["qkv"]) is None:
            continue
        q, k, v = joint.chunk(3)
        made = {"qkv": joint, "q": q, "kv": torch.cat([k, v]), "to_qk": q, "to_v": v}
        for part, value in made.items():
            wanted = any(key.startswith(f"{name}.{part}.") for key in own)
            if wanted and f"{name}.{part}.experts.0.weight" not in state:
                state.setdefault(f"{name}.{part}.{kind}", value)


def _gate(state: dict[str, Tensor], gate: str, router: str) -> None:
    if (weight := state.pop(f"{gate}w_gate", None)) is not None:
        state[f"{router}weight"], state[f"{router}bias"] = weight.T.contiguous(), weight.new_zeros(weight.shape[1])
    state.pop(f"{gate}w_noise", None)


def _experts(state: dict[str, Tensor], name: str) -> None:
    """Both experts from the dense layer, or from a shift layer's neighbour of the same name."""
    for kind in ("weight", "bias"):
        if (value := state.pop(f"{name}.{kind}", None)) is not None:
            state.setdefault(f"{name}.experts.0.{kind}", value)
            state.setdefault(f"{name}.experts.1.{kind}", value.clone())


def _shifts(state: dict[str, Tensor], name: str, module: _Shift) -> None:
    if (weight := state.pop(f"{name}.weight", None)) is not None:
        for key, value in module.parts(weight.float(), module.bits).items():
            state.setdefault(f"{name}.{key}", value)
