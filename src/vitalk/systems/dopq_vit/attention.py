"""Attention probabilities: TanQ searched for products, the paper's clip test, and errors by quantizer."""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.quant import Quantizer, QuantMatMul, TanQuantizer, choose, expose, observe, sites


def search_products(model: nn.Module, images: Tensor) -> None:
    """Take for each TanQ of a calibrated ``model`` the table of least squared error of the product with the values.

    images: [count, channels, height, width]; eight of them are looked at. (Ours: the paper's criterion is unconfirmed.)
    """
    seen = observe(model, images)
    for name, site in sites(model).items():
        if isinstance(site, QuantMatMul) and isinstance(site.left_quantizer, TanQuantizer) and name in seen:
            for candidates in site.left_quantizer.candidates(seen[name].inputs[0].flatten()):
                choose(site, seen[name], "left_quantizer", candidates)


def clipped(model: nn.Module, share: float = 0.01, largest: bool = True) -> nn.Module:
    """A copy of a quantized ``model`` whose attention is zero where it is largest, or smallest (arXiv 2408.03291).

    share: of the values of each layer and picture (with windows: and window), in (0, 1). In front of the quantizer.
    Raises UserError for other shares, and for models whose attention products are not quantized.
    """
    if not 0 < share < 1:
        raise UserError(f"the share of attention to clip must be in (0, 1), got {share}")
    model = copy.deepcopy(model)
    products = [m for name, m in model.named_modules() if name.endswith("matmul2") and isinstance(m, QuantMatMul)]
    if not products:
        raise UserError("the attention products of the model are in float; quantize them to clip what they see")
    for product in products:
        product.register_forward_pre_hook(partial(_clip, share, largest))
    return model


def _clip(share: float, largest: bool, _: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    attention, values = args
    rows = attention.flatten(1)
    lost = rows.topk(max(round(share * rows.shape[1]), 1), largest=largest).indices
    return rows.scatter(1, lost, 0).view_as(attention), values


@torch.no_grad()
def attention_errors(
    model: nn.Module, images: Tensor, bits: int, quantizers: dict[str, type[Quantizer]]
) -> dict[str, dict[str, float]]:
    """Relative errors that each of ``quantizers`` makes of a float network's attention, averaged over the layers.

    images: [count, channels, height, width]; of eight pictures each quantizer is fitted and judged.
    "values": of the probabilities. "product": of what the product with the values puts out. "largest": of the largest
    probability of each row.
    """
    seen = observe(expose(copy.deepcopy(model).eval()), images)
    products = [one for name, one in seen.items() if name.endswith("matmul2")]
    if not products:
        raise UserError("the model has no attention of timm's kind whose probabilities could be quantized")
    found = {}
    for name, kind in quantizers.items():
        total = torch.zeros(3)
        for one in products:
            attention, values = one.inputs
            quantizer = kind(bits)
            quantizer.fit(attention)
            rounded = quantizer.quantize(attention)
            best, place = attention.max(-1, keepdim=True)
            pairs = ((rounded, attention), (rounded @ values, one.out), (rounded.gather(-1, place), best))
            total += torch.stack([(a - b).norm() / b.norm() for a, b in pairs]).cpu()
        found[name] = dict(zip(("values", "product", "largest"), (total / len(products)).tolist(), strict=True))
    return found
