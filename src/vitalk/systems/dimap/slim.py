"""The structured route: whole heads and hidden units go, and what is left is a smaller dense network."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from timm.layers import Attention, Mlp
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.attention import SiteAttention, SiteWindowAttention
from vitalk.vision.cost import count

from .layers import example, require_finite
from .scores import group_scores

STEP = 8  # hidden units go by eights, in which matrix kernels count


@dataclass
class Piecewise:
    """A module that can lose pieces: heads, or eight hidden units at a time.

    pieces: the indices that make up each, best first. worth: score per MAC, macs: what each costs, both [pieces].
    """

    module: nn.Module
    pieces: tuple[Tensor, ...]
    worth: Tensor
    macs: Tensor


def slim(model: nn.Module, rate: float = 0.3, image: Tensor | None = None) -> nn.Module:
    """A copy of ``model`` without its least needed attention heads and hidden units: dense, smaller and faster.

    Ours: the paper prunes single weights. A piece, a head or eight hidden units, is worth the sum of its weights' DIMAP
    scores (ranking "module") by the MACs that it costs, attention products included; what is worth least goes first, in
    the whole network. Every attention keeps a head, every MLP eight units. Works on timm's ``Attention``, Swin's
    ``WindowAttention`` (not v2's, whose width is fixed) and ``Mlp``, and so on plain ViTs, DeiTs and Swins; zeros of a
    network that was pruned before count for nothing.
    rate: the share of the model's MACs that goes, in [0, 1), and at most a piece more. image: to count them with
    [1, channels, height, width], by default of the model's own size.

    Raises UserError for rates outside [0, 1) or that cannot be reached, models without such modules and weights that
    are not finite.
    """
    if not 0 <= rate < 1:
        raise UserError(f"the rate must be in [0, 1), got {rate}; 0.3 saves three tenths of the MACs")
    model = copy.deepcopy(model)
    parts, total = _parts(model, example(model) if image is None else image)
    worth = torch.cat([part.worth[1:] for part in parts])  # the best piece of each stays
    order = worth.argsort()
    saved = torch.cat([part.macs[1:] for part in parts])[order].cumsum(0) / total
    most = float(saved[-1]) if len(saved) else 0.0
    if rate > most:
        raise UserError(f"a rate of {rate} cannot be reached: all spare heads and units save {most:.3f}; lower it")
    gone = torch.zeros(len(worth), dtype=torch.bool)
    gone[order[: int(torch.searchsorted(saved, rate)) + 1 if rate else 0]] = True
    for part, dropped in zip(parts, gone.split([len(part.pieces) - 1 for part in parts]), strict=True):
        kept = [piece for piece, drop in zip(part.pieces[1:], dropped.tolist(), strict=True) if not drop]
        _slice(part.module, torch.cat([part.pieces[0], *kept]).sort().values)
    return model


def shape(model: nn.Module) -> dict[str, list[int]]:
    """{"heads": by attention, "hidden": by MLP} in the order of the modules, all that ``resize`` needs."""
    modules = [module for _, module in _sliceable(model)]
    return {
        "heads": [module.num_heads for module in modules if not isinstance(module, Mlp)],
        "hidden": [module.fc1.out_features for module in modules if isinstance(module, Mlp)],
    }


def resize(model: nn.Module, heads: Sequence[int], hidden: Sequence[int]) -> nn.Module:
    """``model`` cut, in place, to its first heads and hidden units, as many as given: ready for a slimmed state dict.

    Raises UserError where the numbers are not of this model.
    """
    given, own = {"heads": list(heads), "hidden": list(hidden)}, shape(model)
    for kind, numbers in given.items():
        fits = len(numbers) == len(own[kind])
        if not fits or any(not 1 <= n <= most for n, most in zip(numbers, own[kind], strict=True)):
            raise UserError(f"{kind}={numbers} does not fit a model with {own[kind]}; take those it was slimmed to")
    for _, module in list(_sliceable(model)):
        _slice(module, torch.arange(given["hidden" if isinstance(module, Mlp) else "heads"].pop(0)))
    return model


def _parts(model: nn.Module, image: Tensor) -> tuple[list[Piecewise], int]:
    """All modules that can be cut, and the MACs of ``model(image)``."""
    cost, parts = count(model, image), []
    for name, module in _sliceable(model):
        mlp = isinstance(module, Mlp)
        own = ("fc1", "fc2") if mlp else ("qkv", "proj")
        into, out = (getattr(module, layer).weight.detach() for layer in own)
        for layer, weight in zip(own, (into, out), strict=True):
            require_finite(f"{name}.{layer}", weight)
        if mlp:
            into, out = group_scores([into, out])
            sums = into.sum(1) + out.sum(0)
        else:
            [into], [out], heads = group_scores([into]), group_scores([out]), module.num_heads
            sums = into.view(3, heads, -1).sum((0, 2)) + out.view(len(out), heads, -1).sum((0, 2))
        macs = sum(cost.layers.get(f"{name}.{layer}", 0) for layer in own)
        macs += 0 if mlp else cost.layers.get(name, 0)  # the two products of attention
        pieces = sums.argsort(descending=True, stable=True).split(STEP if mlp else 1)
        each = torch.tensor([len(piece) for piece in pieces]).double() * macs / len(sums)
        parts.append(Piecewise(module, pieces, torch.stack([sums[p].sum() for p in pieces]).cpu() / each, each))
    if not parts:
        raise UserError(
            f"{type(model).__name__} has no attention or MLP that can be slimmed; choose a vit_*, deit* or swin_* model"
        )
    return parts, cost.macs


def _sliceable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        kind = type(module)
        if kind in (WindowAttention, SiteWindowAttention):
            yield name, module
        elif kind in (Attention, SiteAttention):
            if module.gate is None and isinstance(module.norm, nn.Identity):
                yield name, module
        elif kind is Mlp and isinstance(module.fc1, nn.Linear) and isinstance(module.norm, nn.Identity):
            yield name, module


def _slice(module: nn.Module, kept: Tensor) -> None:
    """Leave the hidden units or heads ``kept`` alone, in place."""
    if isinstance(module, Mlp):
        _take(module.fc1, kept, 0)
        _take(module.fc2, kept, 1)
        return
    width, whole = module.proj.in_features // module.num_heads, module.proj.in_features
    columns = (kept[:, None] * width + torch.arange(width, device=kept.device)).flatten()
    _take(module.qkv, torch.cat([columns + part * whole for part in range(3)]), 0)
    _take(module.proj, columns, 1)
    module.num_heads = len(kept)
    if isinstance(module, WindowAttention):
        module.relative_position_bias_table = _parameter(module.relative_position_bias_table, kept, 1)
    else:
        module.attn_dim = len(columns)


def _take(layer: nn.Linear, kept: Tensor, axis: int) -> None:
    """Leave rows (axis 0) or columns (axis 1) ``kept`` of a linear layer, in place."""
    layer.weight = _parameter(layer.weight, kept, axis)
    if axis == 1:
        layer.in_features = len(kept)
        return
    layer.out_features = len(kept)
    if layer.bias is not None:
        layer.bias = _parameter(layer.bias, kept, 0)


def _parameter(whole: nn.Parameter, kept: Tensor, axis: int) -> nn.Parameter:
    return nn.Parameter(whole.detach().index_select(axis, kept.to(whole.device)), requires_grad=whole.requires_grad)
