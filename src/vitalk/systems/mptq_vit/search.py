"""The quantizers, and how their scales are found: in turns, by output errors that gradients weigh."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from vitalk.nn.quant import QuantMatMul, TwinUniformQuantizer, alternate, choose, observe, sites
from vitalk.nn.quant.nonuniform import LEAST_GELU
from vitalk.nn.quant.quantizers import SMALLEST_SCALE
from vitalk.nn.quant.search import Seen, decided, operand
from vitalk.nn.quant.sites import Site
from vitalk.nn.quant.spectrum import Spectrum

ROUNDS = 2
SHARES = tuple(i / 40 for i in range(10, 49))  # 0.25 to 1.2 of the largest value
ROWS = 256  # tokens that a linear layer is judged by
SHORTLIST = 24  # pairs of ranges, the best by squared error, that are judged by output error
FLOOR = 1e-3  # of the mean squared gradient, which every output weighs at least


class FixedTwinQuantizer(TwinUniformQuantizer):
    """The earlier rule for values behind a GELU, which OPT-m replaces: m is not searched.

    The fine range is the negative one of GELU, [-0.17, 0], or up to twice that, so that the coarse one is 2**m times
    as wide and reaches the largest value (PTQ4ViT, arXiv 2111.12293, and TSPTQ-ViT set it by hand; the rounding is
    ours). The coarse step is searched as OPT-m's is, so OPT-m has all of these candidates and more.
    """

    def candidates(self, x: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Those of OPT-m with the one m."""
        m = (x.max().clamp_min(SMALLEST_SCALE) / LEAST_GELU).log2().floor().clamp(0, self.most)
        for scale, octaves in super().candidates(x):
            yield scale[octaves == m], octaves[octaves == m]


def operands(site: Site) -> tuple[str, str]:
    """The names of the site's two quantizers."""
    if isinstance(site, QuantMatMul):
        return "left_quantizer", "right_quantizer"
    return "weight_quantizer", "input_quantizer"


def look(model: nn.Module, images: Tensor) -> dict[str, Seen]:
    """What the sites see and put out in float, and how much the loss depends on that, by name."""
    return observe(model, images, decided, ROWS)


def search_all(model: nn.Module, seen: dict[str, Seen], track: Iterable[str] | None = None) -> None:
    """Fit the quantizers of all sites; those of sites that no picture reaches are switched off.

    track: the names of the sites, in an iterable that shows progress; by default just their names.
    """
    found = sites(model)
    for name in found if track is None else track:
        if name in seen:
            search(found[name], weighted(seen[name]))
            continue
        for which in operands(found[name]):
            if (quantizer := getattr(found[name], which)) is not None:
                quantizer.enabled = False


def weighted(seen: Seen) -> Seen:
    """``seen`` with gradients that are never near zero; without any where all of them are.

    An output that the loss ignores on a few pictures would else be free to be anything. (Ours.)
    """
    if seen.grad is None or not float(power := seen.grad.square().mean()):
        return Seen(seen.inputs, seen.out)
    return Seen(seen.inputs, seen.out, (seen.grad.square() / power + FLOOR).sqrt())


@torch.no_grad()
def search(site: Site, seen: Seen) -> None:
    """Fit the two quantizers of ``site`` to what it saw: those with two ranges first, then the uniform ones in turns.

    OPT-m (arXiv 2401.14895): every m from 0 to 15, at each of twenty coarse steps behind a GELU; the best of them by
    squared error are judged by the output error, with the other operand quantized.
    """
    names = operands(site)
    for name in names:
        if (quantizer := getattr(site, name)) is not None:
            quantizer.fit(operand(site, seen, name))
    for name in names:
        if isinstance(quantizer := getattr(site, name), TwinUniformQuantizer):
            choose(site, seen, name, shortlist(quantizer, operand(site, seen, name)))
    alternate(site, seen, names, ROUNDS, SHARES)


def shortlist(quantizer: TwinUniformQuantizer, x: Tensor) -> tuple[Tensor, ...]:
    """The candidates that round x with the least squared errors, best first: (scale, octaves), each [candidates]."""
    found = [torch.cat(column) for column in zip(*quantizer.candidates(x.flatten()), strict=True)]
    errors = Spectrum(x).errors(quantizer.values(*found), quantizer.edges(*found))
    best = errors.argsort(stable=True)[:SHORTLIST]
    return tuple(one[best] for one in found)
