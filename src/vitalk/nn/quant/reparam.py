"""Scale reparameterization: channel-wise quantizers behind LayerNorm, folded into it and into the next layer."""

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .quantizers import UniformQuantizer
from .sites import QuantLinear, expose, sites, switched_off

DEAD = 1e-3  # channels whose scale is below this share of the mean are quantized as if it were this share (chosen)
TOKEN_MOVES = {  # padding is among them since Swin pads by nothing; real padding shows as wrong channel numbers
    f"{name}Backward0"
    for name in (
        "View",
        "UnsafeView",
        "_ReshapeAlias",
        "Alias",
        "Clone",
        "Permute",
        "Transpose",
        "Roll",
        "ConstantPadNd",
    )
}

Pair = tuple[nn.LayerNorm, list[QuantLinear]]


def find_pairs(model: nn.Module, image: Tensor) -> list[Pair]:
    """The LayerNorms of ``model`` whose output goes into linear sites and nowhere else, with those sites.

    Found by data flow, not by name: in one pass over ``image`` [1, channels, height, width] every LayerNorm puts
    out the numbers of its channels; a site that receives just these in order, over moves of whole tokens at most,
    is fed by it, and the autograd graph tells whether anything else is. (Ours; the official code matches names.)
    In ViTs these are norm1 -> qkv and norm2 -> fc1, in Swin the LayerNorm of each downsampling too. Where padding,
    pooling or a residual stands between, there is no pair.
    """
    probe = _Probe()
    handles = []
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and module.weight is not None and module.bias is not None:
            handles.append(module.register_forward_hook(probe.number_channels))
        elif isinstance(module, QuantLinear):
            handles.append(module.register_forward_pre_hook(probe.mark_input))
    try:
        with switched_off(model), torch.enable_grad():
            out = model(image.detach().clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    return probe.pairs(out)


def widen(model: nn.Module, image: Tensor, wide: Callable[[str], bool] = lambda name: True) -> list[Pair]:
    """Give the layers behind LayerNorms input quantizers with a scale a channel, not fitted, which ``fold`` expects.

    wide: names of the layers that may have them. Returns the pairs whose layers all do.
    """
    names = {site: name for name, site in sites(model).items()}
    pairs = [pair for pair in find_pairs(model, image) if all(wide(names[linear]) for linear in pair[1])]
    for _, linears in pairs:
        for linear in linears:
            linear.input_quantizer = UniformQuantizer(linear.input_quantizer.bits, axis=-1, covers_zero=False)
    return pairs


class _Probe:
    def __init__(self) -> None:
        self.norms: dict[Any, nn.LayerNorm] = {}  # by the graph node of their output
        self.inputs: dict[Any, QuantLinear] = {}  # by the graph node of their marked input
        self.calls: dict[nn.Module, int] = defaultdict(int)

    def number_channels(self, norm: nn.LayerNorm, _: Any, out: Tensor) -> Tensor:
        self.calls[norm] += 1
        numbered = out.clamp(0, 0) + _numbers(out)
        self.norms[numbered.grad_fn] = norm
        return numbered

    def mark_input(self, site: QuantLinear, args: tuple[Tensor]) -> tuple[Tensor] | None:
        self.calls[site] += 1
        if not torch.equal(args[0], _numbers(args[0]).expand_as(args[0])):
            return None
        marked = args[0].view_as(args[0])
        self.inputs[marked.grad_fn] = site
        return (marked,)

    def pairs(self, out: Tensor) -> list[Pair]:
        users = _users(out.grad_fn)
        found = []
        for node, norm in self.norms.items():
            reached = self._sites_behind(node, users)
            if reached and all(self.calls[module] == 1 for module in [norm, *reached]):
                found.append((norm, reached))
        return found

    def _sites_behind(self, node: Any, users: dict[Any, list[Any]]) -> list[QuantLinear]:
        reached, open_nodes = [], list(users[node])
        while open_nodes:
            user = open_nodes.pop()
            if user in self.inputs:
                reached.append(self.inputs[user])
            elif user.name() in TOKEN_MOVES:
                open_nodes += users[user]
            else:
                return []
        return reached


def _numbers(x: Tensor) -> Tensor:
    return torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)


def _users(last: Any) -> dict[Any, list[Any]]:
    users: dict[Any, list[Any]] = defaultdict(list)
    open_nodes, seen = [last], {last}
    while open_nodes:
        node = open_nodes.pop()
        for source, _ in node.next_functions:
            if source is None:
                continue
            users[source].append(node)
            if source not in seen:
                seen.add(source)
                open_nodes.append(source)
    return users


Common = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


def mean_scale(scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """RepQ-ViT's choice (arXiv 2212.08254): the means of channel scales and zero points [channels]."""
    return scale, zero_point, scale.mean(), zero_point.mean()


@torch.no_grad()
def fold(norm: nn.LayerNorm, linears: list[QuantLinear], integer: bool = True, common: Common = mean_scale) -> None:
    """Turn the channel-wise input quantizers of ``linears`` into one per tensor (arXiv 2212.08254).

    The ratios of scales and zero points go into the weights of ``norm``, their inverse into those of ``linears``,
    whose float output stays what it was; a bias is created where there was none. Weight quantizers that were fitted
    are fitted anew.
    common: (channel scales, zero points) -> (the same, changed where the method changes them, the common scale, the
    common zero point), each scale positive.
    integer: round the common zero point into the code range; any value gives the same float network, but with a
    whole one, as runtimes demand, the rewritten pair also rounds exactly as the channel-wise quantizer did. The
    paper's code keeps the mean as it is.
    """
    wide = linears[0].input_quantizer
    scale, zero_point, common_scale, common_zero = common(*lifted(wide.scale, wide.zero_point))
    if integer:
        common_zero = common_zero.round().clamp(wide.low, wide.high)
    absorb(norm, linears, scale / common_scale, (common_zero - zero_point) * common_scale)
    for linear in linears:
        narrow = UniformQuantizer(wide.bits)
        narrow.scale, narrow.zero_point, narrow.enabled = common_scale, common_zero, linear.input_quantizer.enabled
        linear.input_quantizer = narrow


@torch.no_grad()
def absorb(norm: nn.LayerNorm, linears: list[QuantLinear], ratio: Tensor, shift: Tensor) -> None:
    """Make ``norm`` put out x / ratio - shift instead of x, and ``linears`` take it; the float network stays the same.

    ratio, shift: [channels]. A bias is created where there was none; weight quantizers that were fitted are fitted
    anew.
    """
    norm.weight.div_(ratio)
    norm.bias.div_(ratio).sub_(shift)
    for linear in linears:
        linear.weight.mul_(ratio)
        moved = linear.weight @ shift
        linear.bias = nn.Parameter(moved if linear.bias is None else linear.bias + moved)
        if linear.weight_quantizer is not None and linear.weight_quantizer.fitted:
            linear.weight_quantizer.fit(linear.weight)


def lifted(scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
    """Channel scales [channels] with those of dead channels lifted to a share of the mean, and zero points to match.

    Dividing by a scale near zero would blow up the folded LayerNorm.
    """
    safe = scale.clamp_min(DEAD * scale.mean())
    return safe, torch.where(safe > scale, (zero_point * scale / safe).round(), zero_point)


def with_outliers(model: nn.Module, image: Tensor, channels: int = 2, factor: float = 20.0, seed: int = 0) -> nn.Module:
    """A copy of ``model``, the same float network, some channels of whose LayerNorms are ``factor`` times as large.

    The layers behind undo it. Large trained ViTs have such outliers, small ones hardly: for experiments on what copes
    with them. image: [1, channels, height, width]. channels: so many, at random, in each LayerNorm.
    """
    model = expose(copy.deepcopy(model).eval())
    generator = torch.Generator().manual_seed(seed)
    for norm, linears in find_pairs(model, image):
        ratio = torch.ones_like(norm.weight)
        ratio[torch.randperm(len(ratio), generator=generator)[:channels]] = 1 / factor
        absorb(norm, linears, ratio, torch.zeros_like(ratio))
    return model
