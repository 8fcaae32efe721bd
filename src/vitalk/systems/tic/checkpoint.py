"""The official repository's checkpoints (zs670980918/MSA-Conv), renamed to ours; it holds a layer, no network."""

import re
from typing import Any

from torch import Tensor, nn

from vitalk.nn.checkpoints import unwrapped

QKV = re.compile(r"^(.*\.)?qkv_conv\.(weight|bias)$")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint of official layers as a state dict of ``model``; what is ours already passes through.

    model: an ``MSAConvLayer``, an ``MSAConv`` (the release's first commit, which had no tail), or a network that
    holds such layers under the official names. Takes whole training checkpoints with or without ``module.``.
    """
    state = unwrapped(state_dict, averaged=False)
    own, out = model.state_dict(), dict(state)
    for name, value in state.items():
        if (found := QKV.match(name)) is None:
            continue
        layer, entry = found[1] or "", found[2]
        del out[name]
        if f"{layer}qkv.weight" in own:
            out[f"{layer}qkv.{entry}"] = value
            continue
        out[f"{layer}attn.qkv.{entry}"] = value
        for entry in ("weight", "bias"):
            if f"{layer}mlp.{entry}" in out:
                out[f"{layer}tail.{entry}"] = out.pop(f"{layer}mlp.{entry}")
    return out
