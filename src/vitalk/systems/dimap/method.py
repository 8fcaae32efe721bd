"""DIMAP: one threshold over all scores, by sparsity or by what is saved."""

from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.vision.cost import count

from .cost import macs_per_weight
from .layers import Aux, Layer, example, partition
from .masks import Masks
from .scores import GROUPED, Ranking, descending, loss_gradients, rank

Of = Literal["weights", "params", "macs"]


def dimap(
    model: nn.Module,
    rate: float = 0.5,
    of: Of = "weights",
    ranking: Ranking = "module",
    aux: Aux = "inner",
    image: Tensor | None = None,
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    seed: int = 0,
) -> Masks:
    """Prune ``model`` in one shot, in place: what scores least is zeroed (arXiv 2404.13648, section 3).

    rate: the share that goes, in [0, 1), of the prunable weights (the paper's sparsity), of all the model's parameters
    or of its MACs, attention products and unprunable layers included; exact to one weight. Weights that are zero
    already are not ranked, but count as gone; a network that is sparser than ``rate`` stays as it is.
    ranking, seed: see ``scores.rank``. aux: which layers outside attention and MLPs are pruned, see
    ``layers.partition``. image: a picture [1, channels, height, width] to count MACs with, by default of the model's
    own size. batches: (images, labels), for the ranking "taylor" alone.

    Raises UserError for rates outside [0, 1), or so high that a group would lose its last weight or the rest of the
    network alone costs more; for models without prunable layers and weights that are not finite.
    """
    if not 0 <= rate < 1:
        raise UserError(f"the rate must be in [0, 1), got {rate}; 0.5 prunes half")
    if of not in get_args(Of):
        raise UserError(f"a rate is of {', '.join(get_args(Of))}, got {of}")
    layers = partition(model, aux)
    gradients = loss_gradients(model, layers, batches) if ranking == "taylor" and batches is not None else None
    scores = rank(layers, ranking, gradients, seed)
    flat = torch.cat([values.flatten() for values in scores.values()])
    alive = int((flat >= 0).sum())
    total = sum(p.numel() for p in model.parameters())
    if of == "macs":
        cost = count(model, example(model) if image is None else image)
        keep = _most(flat, layers, macs_per_weight(layers, cost), rate, cost.macs)
    else:
        base = flat.numel() if of == "weights" else total
        keep = flat.numel() - round(rate * base)
        if keep < 0:
            raise UserError(_unreachable(rate, "parameters", flat.numel() / total))
    least = int((flat == 1).sum()) if ranking in GROUPED else 1  # each group's largest weight has score 1
    if keep < least:
        raise UserError(
            f"a rate of {rate} would leave {keep} weights for {least} groups of layers; lower it, "
            f"to {1 - least / flat.numel():.6f} of the weights at most"
        )
    masks = cut(flat, scores, min(keep, alive))
    masks.apply(model)
    return masks


def cut(flat: Tensor, scores: dict[str, Tensor], keep: int) -> Masks:
    """Masks that keep the ``keep`` highest of all scores together, neither more nor fewer where some are equal.

    flat: all of ``scores`` in a row, in their order.
    """
    kept = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    kept[flat.topk(keep, sorted=False).indices] = True
    parts = kept.split([values.numel() for values in scores.values()])
    return Masks({name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)})


def _most(flat: Tensor, layers: dict[str, Layer], price: dict[str, float], rate: float, total: int) -> int:
    """How many of the highest scores may stay so that at least ``rate`` of the ``total`` MACs is saved.

    The end of the bisection on the sparsity that the paper's protocol needs, from the running sum of the prices.
    """
    prices = torch.cat([flat.new_full((layer.weight.numel(),), price[name]) for name, layer in layers.items()])
    rest = total - float(prices.sum())
    left = (1 - rate) * total - rest
    if left < 0:
        raise UserError(_unreachable(rate, "MACs", 1 - rest / total))
    spent = prices[descending(flat)].cumsum(0)
    return int(torch.searchsorted(spent, left * (1 + 1e-12), right=True))


def _unreachable(rate: float, what: str, most: float) -> str:
    return (
        f"a rate of {rate} of the {what} cannot be reached: the prunable layers have {most:.3f} of them; "
        "lower the rate, or prune more layers with aux='all'"
    )
