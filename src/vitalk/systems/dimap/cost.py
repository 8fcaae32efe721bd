"""What a pruned network costs: on paper, by its nonzero weights, and in fact."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitalk.vision.cost import Cost, count, latencies

from .kernels import dense_linears
from .layers import Layer, example, partition
from .storage import packed_size


@dataclass(frozen=True)
class SparseCost:
    """What a network would cost on a machine that skips zeros, beside what it costs on one that does not.

    params, macs: nonzero weights (with everything that is never pruned), and multiply-accumulates a picture, each
    layer's weighted by its density. dense_params, dense_macs: the same without regard to zeros. density: share of
    nonzero weights by layer.
    """

    params: int
    macs: int
    dense_params: int
    dense_macs: int
    density: dict[str, float]


@dataclass(frozen=True)
class Record:
    """Cost on paper against cost in fact, of one network.

    params, macs: as in ``SparseCost``. seconds: median of a forward pass on the batch that was given. file: bytes of
    its weights as ``write_sparse`` stores them.
    """

    params: int
    macs: int
    seconds: float
    file: int


def sparse_cost(model: nn.Module, image: Tensor | None = None) -> SparseCost:
    """The cost of ``model`` on image [batch, channels, height, width]; None for one picture of its own size."""
    layers = partition(model, "all")
    dense = count(model, example(model) if image is None else image)
    uses = macs_per_weight(layers, dense)
    zeros = {name: int((layer.weight == 0).sum()) for name, layer in layers.items()}
    macs = dense.macs - round(sum(zeros[name] * uses[name] for name in layers))
    density = {name: 1 - zeros[name] / layer.weight.numel() for name, layer in layers.items()}
    return SparseCost(dense.params - sum(zeros.values()), macs, dense.params, dense.macs, density)


def macs_per_weight(layers: dict[str, Layer], cost: Cost) -> dict[str, float]:
    """How often each layer uses a weight, in the forward pass that ``cost`` was counted in: its number of tokens.

    Where a module multiplies by the weight of a layer without calling it (Swin v2's ``qkv``), a layer beside it that
    is called tells the number. Layers that take no part have 0.
    """
    uses = {n: cost.layers[n] / layer.weight.numel() for n, layer in layers.items() if n in cost.layers}
    beside = {name.rpartition(".")[0]: value for name, value in uses.items()}
    return {name: uses.get(name, beside.get(name.rpartition(".")[0], 0.0)) for name in layers}


def records(models: dict[str, nn.Module], images: Tensor, seconds: float = 10.0) -> dict[str, Record]:
    """One record a network, on images [batch, channels, height, width], timed in turns for about so many seconds.

    Zeros gain nothing in dense kernels: to save time a network must be slimmed (``slim``), or multiply by sparse
    matrices (``sparse_linears``); the second kind is counted as the network that it was made of.
    """
    with torch.inference_mode():
        runs = {name: lambda model=model.eval(): model(images) for name, model in models.items()}
        taken = latencies(runs, warmup=1, repeats=30, seconds=seconds)
    costs = {name: sparse_cost(dense_linears(model), images[:1]) for name, model in models.items()}
    sizes = {name: packed_size(dense_linears(model).state_dict()) for name, model in models.items()}
    return {name: Record(costs[name].params, costs[name].macs, taken[name], sizes[name]) for name in models}
