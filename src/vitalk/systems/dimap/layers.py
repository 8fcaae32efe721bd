"""Which weights are pruned, and the module that each of them belongs to."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vitalk.errors import UserError

Aux = Literal["none", "inner", "all"]
QKV = {"qkv", "q", "k", "v", "kv", "qk", "q_proj", "k_proj", "v_proj"}
PROJECTIONS = {"proj", "out_proj", "o_proj"}
POSITIONS = ("cpb_mlp", "meta_mlp", "rel_pos")  # small networks that make position tables


@dataclass(frozen=True)
class Layer:
    """A layer whose weight is pruned.

    kind: "qkv", "prj", "mlp" or "aux", the module type. owner: name of the attention or MLP that it is part of.
    """

    name: str
    kind: str
    owner: str
    module: nn.Linear | nn.Conv2d

    @property
    def weight(self) -> Tensor:
        """[out, in], of convolutions [out, in, height, width]; outside autograd."""
        return self.module.weight.detach()


def partition(model: nn.Module, aux: Aux = "inner") -> dict[str, Layer]:
    """The prunable layers of ``model`` by name, in the order of its modules (arXiv 2404.13648, section 3).

    Told by the names that timm's models share: query, key and value projections are QKV-M, the output projection
    beside them PRJ-M, both layers of an MLP MLP-M, the rest AUX-M. Biases, norms, position tables and the networks
    that make such tables are never pruned.
    aux: "none" leaves AUX-M alone, "inner" (ours, the paper is silent) takes the linear layers inside the trunk, such
    as patch merging, "all" also the classifier and every convolution, the patch embedding among them.

    Raises UserError for a model without such layers and for weights that are not finite.
    """
    if aux not in get_args(Aux):
        raise UserError(f"aux must be one of {', '.join(get_args(Aux))}, got {aux}")
    heads, seen, found = _heads(model), set(), {}
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)) or any(part in name for part in POSITIONS):
            continue
        kind = _kind(model, name) if isinstance(module, nn.Linear) else "aux"
        outer = isinstance(module, nn.Conv2d) or id(module) in heads
        left_out = kind == "aux" and (aux == "none" or (outer and aux != "all"))
        if left_out or id(module.weight) in seen:
            continue
        seen.add(id(module.weight))
        require_finite(name, module.weight)
        found[name] = Layer(name, kind, name.rpartition(".")[0], module)
    if not found:
        raise UserError(
            f"{type(model).__name__} has no prunable layers with aux={aux!r}; aux='all' takes convolutions and the head"
        )
    return found


def require_finite(name: str, weight: Tensor) -> None:
    """Raise UserError where the weight of the layer ``name`` holds NaN or infinite values."""
    if not torch.isfinite(weight).all():
        raise UserError(f"the weight {name}.weight holds NaN or infinite values; use an intact checkpoint")


def example(model: nn.Module) -> Tensor:
    """A picture of zeros [1, channels, height, width] of the size that ``model`` was made for, on its device."""
    vit = getattr(model, "vit", model)  # of a Trunk
    cfg = getattr(model, "pretrained_cfg", None) or {}
    channels, *size = cfg.get("input_size") or (3, 224, 224)
    size = getattr(getattr(vit, "patch_embed", None), "img_size", None) or size
    first = next(model.parameters())
    return torch.zeros(1, channels, *size, device=first.device, dtype=first.dtype)


def _kind(model: nn.Module, name: str) -> str:
    path, _, own = name.rpartition(".")
    parent = model.get_submodule(path)
    if own in QKV:
        return "qkv"
    if own in PROJECTIONS and any(child in QKV for child, _ in parent.named_children()):
        return "prj"
    return "mlp" if path.rpartition(".")[2].startswith(("mlp", "ffn")) else "aux"


def _heads(model: nn.Module) -> set[int]:
    """Identities of the classifier's modules; distilled models have two classifiers."""
    get = getattr(model, "get_classifier", None)
    found = get() if get else None
    parts = found if isinstance(found, (tuple, list)) else [found]
    return {id(module) for part in parts if isinstance(part, nn.Module) for module in part.modules()}
