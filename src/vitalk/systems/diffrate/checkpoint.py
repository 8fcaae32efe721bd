"""Official checkpoints: DiffRate's own entries beside those of DeiT, MAE and CAFormer."""

import re
from typing import Any

from timm.models.metaformer import MetaFormer
from timm.models.metaformer import checkpoint_filter_fn as metaformer_filter
from torch import Tensor, nn

from vitalk.nn.checkpoints import unwrapped
from vitalk.vision.tokens import Trunk

PROXY = re.compile(r"(?:blocks\.(\d+)|stages\.(\d+)\.(\d+))\.(prune|merge)_ddp\.(\w+)$")


def convert(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """An official or timm checkpoint -> the state dict of a network with a schedule, or with proxies.

    The logits of the release's proxies (``blocks.1.prune_ddp.selected_probability``) go to ours where ``model`` has
    proxies, and are dropped where its schedule is fixed; their candidates are no weights here.
    """
    state_dict = unwrapped(state_dict, averaged=False)
    own = {key: value for key, value in state_dict.items() if key.startswith("reducers.")}
    found = {key: match for key in state_dict if (match := PROXY.search(key))}
    if any(True for _ in getattr(model, "reducers", nn.Module()).parameters()):
        first = _first_blocks(model)
        for key, match in found.items():
            block, stage, inner, kind, entry = match.groups()
            if entry == "selected_probability":
                index = int(block) if block else first[int(stage)] + int(inner)
                own[f"reducers.{index}.{kind}.logits"] = state_dict[key]
    plain = {key: value for key, value in state_dict.items() if key not in found and key not in own}
    if isinstance(model, MetaFormer):
        return {**metaformer_filter(plain, model), **own}
    return {**Trunk.checkpoint_filter_fn(plain, model), **own}


def _first_blocks(model: nn.Module) -> dict[int, int]:
    """Attention stage of a CAFormer -> the index of the reducer of its first block."""
    first, index = {}, 0
    for number, stage in enumerate(getattr(model, "stages", [])):
        if not stage.use_nchw:
            first[number] = index
            index += len(stage.blocks)
    return first
