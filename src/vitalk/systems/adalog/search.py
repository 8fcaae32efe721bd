"""FPCS, AdaLog's fast progressive combining search: a beam over joint candidates, judged by the output of a layer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from vitalk.errors import UserError
from vitalk.nn.quant import AdaptiveLogQuantizer, Quantizer, QuantMatMul, UniformQuantizer, choose, errors
from vitalk.nn.quant.quantizers import SMALLEST_SCALE, extremes, round_trip
from vitalk.nn.quant.search import Seen, operand
from vitalk.nn.quant.sites import Site

INNER, WHOLE = 0.9, 1.0  # scales lie between the ranges of these percentiles
ZERO_POINTS = 16  # at most
BASES = 8  # that enter the joint search
AT_ONCE = 2**23  # values that candidates are tried on in one pass

Score = Callable[[Tensor, Tensor], Tensor]  # candidates (scales, partners) -> errors; all [candidates, parts]


@dataclass(frozen=True)
class Search:
    """How much is tried (FPCS, arXiv 2407.12951).

    candidates: at each step. beam: how many of them survive it. steps: of one search; 1 is a plain grid. rounds: how
    often the two operands of a layer are searched in turn. The defaults (ours) are a tenth of the official code's
    work, which is ``PAPER``.
    rows, pictures: tokens that a linear layer is judged by, and pictures (in Swin windows) that all else is (ours, the
    official code takes all of 32 pictures).
    Raises UserError for numbers that leave nothing to search.
    """

    candidates: int = 64
    beam: int = 8
    steps: int = 3
    rounds: int = 1
    rows: int = 512
    pictures: int = 8

    def __post_init__(self) -> None:
        for name in ("beam", "steps", "rounds", "rows", "pictures"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} of the search must be 1 or more, got {getattr(self, name)}")
        if self.candidates < max(2 * self.beam, 2 * ZERO_POINTS):
            least = max(2 * self.beam, 2 * ZERO_POINTS)
            raise UserError(f"candidates of the search must be {least} or more at this beam, got {self.candidates}")

    @property
    def plain(self) -> "Search":
        """The plain grid that looks at as many candidates, for comparison."""
        return replace(self, candidates=self.candidates * self.steps, steps=1)


PAPER = Search(candidates=128, beam=16, steps=6, rounds=3)


@torch.no_grad()
def fpcs(score: Score, scales: Tensor, partners: Tensor, spacing: Tensor, search: Search) -> tuple[Tensor, ...]:
    """The best (scale, partner, error), each [parts], that a beam search finds; all parts at once, each by itself.

    scales, partners: the first grid, [candidates, parts]; a partner is a zero point or a base. spacing: of the scales
    in it, [1, parts]. Each survivor is replaced by scales within half a spacing of its own, its partner kept, and the
    spacing shrinks. Survivors stay in the race with the score they had, so that no step is worse than the one before
    (ours; in the official code they drop out).
    """
    spawn = search.candidates // search.beam
    spread = torch.linspace(-0.5, 0.5, spawn, dtype=scales.dtype, device=scales.device)[:, None, None]
    found = [scales, partners, score(scales, partners)]
    for _ in range(search.steps - 1):
        best = found[2].topk(min(search.beam, len(found[2])), 0, largest=False).indices
        found = [values.gather(0, best) for values in found]
        scales = (found[0] + spread * spacing).flatten(0, 1).clamp_min(SMALLEST_SCALE)
        partners = found[1].repeat(spawn, 1)
        spacing = spacing / (spawn - 0.5)
        fresh = (scales, partners, score(scales, partners))
        found = [torch.cat(pair) for pair in zip(found, fresh, strict=True)]
    best = found[2].argmin(0, keepdim=True)
    return tuple(values.gather(0, best)[0] for values in found)


def grid(quantizer: UniformQuantizer, x: Tensor, count: int, zero_points: int) -> tuple[Tensor, Tensor, Tensor]:
    """(scales, zero points, spacing of the scales) to start from: two [candidates, parts] and one [1, parts].

    Scales are evenly spaced between the ranges of the percentiles 90 and 100. Zero points are the whole numbers around
    the one that such a range asks for, codes where the quantizer covers zero. (Ours: the official code takes those
    around half of the codes, with which values of one sign lose a bit.)
    """
    low, high = extremes(quantizer.rows(x), (INNER, WHOLE))
    if quantizer.covers_zero or quantizer.symmetric:
        low, high = low.clamp_max(0), high.clamp_min(0)
    zero_points = 1 if quantizer.symmetric else zero_points
    number = max(count // zero_points, 2)
    along = torch.linspace(0, 1, number, dtype=low.dtype, device=low.device)[:, None]
    low, high = (torch.lerp(side[:1], side[1:], along) for side in (low, high))
    span = high.maximum(-low) if quantizer.symmetric else high - low
    scales = (span / quantizer.high).clamp_min(SMALLEST_SCALE)
    spacing = (scales[-1:] - scales[:1]) / (number - 1)
    if quantizer.symmetric:
        return scales, torch.zeros_like(scales), spacing
    first = (-low / scales).round() - zero_points // 2
    if quantizer.covers_zero:
        first = first.clamp(0, quantizer.high + 1 - zero_points)
    zeros = first + torch.arange(zero_points, dtype=low.dtype, device=low.device)[:, None, None]
    return scales.repeat(zero_points, 1), zeros.flatten(0, 1), spacing


def own_errors(quantizer: UniformQuantizer, x: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """Mean squared error of rounding x itself by each candidate, [candidates, parts]."""
    rows = quantizer.rows(x)
    step = max(AT_ONCE // rows.numel(), 1)
    return torch.cat(
        [
            (round_trip(rows[None], s[..., None], z[..., None], quantizer.low, quantizer.high) - rows).square_().mean(2)
            for s, z in zip(scales.split(step), zeros.split(step), strict=True)
        ]
    )


def output_errors(site: Site, seen: Seen, which: str, scales: Tensor, partners: Tensor) -> Tensor:
    """Mean squared error of the site's output with each candidate, [candidates, parts]."""
    if not isinstance(getattr(site, which), UniformQuantizer):  # tables have one scale each
        scales, partners = scales[:, 0], partners[:, 0]
    return errors(site, seen, which, (scales, partners)).reshape(len(scales), -1)


def search_uniform(
    quantizer: UniformQuantizer, x: Tensor, search: Search, zero_points: int, score: Score | None = None
) -> None:
    """Fit a uniform quantizer to x by FPCS over scale and zero point; what it is fitted to already stays in the race.

    score: by default ``own_errors``.
    """
    scales, zeros, spacing = grid(quantizer, x, search.candidates, zero_points)
    if quantizer.fitted:
        scales = torch.cat([scales, quantizer.scale.reshape(1, -1)])
        zeros = torch.cat([zeros, quantizer.zero_point.reshape(1, -1)])
    scale, zero, _ = fpcs(score or partial(own_errors, quantizer, x), scales, zeros, spacing, search)
    quantizer.take(x, scale, zero)


def search_log(site: Site, seen: Seen, which: str, search: Search) -> None:
    """Fit an adaptive logarithm: all bases at the scale that it has; with a shift then the best of them and the scale
    jointly, by FPCS. Without one, for softmax, the scale stays.
    """
    quantizer: AdaptiveLogQuantizer = getattr(site, which)
    x, (scale, base) = operand(site, seen, which), quantizer.known
    bases = torch.tensor(list(quantizer.bases), dtype=x.dtype, device=x.device)
    if not quantizer.shift:
        choose(site, seen, which, (scale.expand_as(bases), bases))
        return
    order = errors(site, seen, which, (scale.expand_as(bases), bases)).argsort()
    bases = bases[order[:BASES]]
    positive = x[x > 0] if bool((x > 0).any()) else x.new_zeros(1)
    top = extremes(positive[None], (INNER, WHOLE))[1][:, 0] + quantizer.shift
    number = max(search.candidates // len(bases), 2)
    scales = torch.lerp(top[0], top[1], torch.linspace(0, 1, number, dtype=x.dtype, device=x.device))
    scales, partners = torch.cartesian_prod(scales, bases).unbind(1)
    scales, partners = torch.cat([scales, scale[None]])[:, None], torch.cat([partners, base[None]])[:, None]
    spacing = ((top[1] - top[0]) / (number - 1)).view(1, 1)
    scale, base, _ = fpcs(partial(output_errors, site, seen, which), scales, partners, spacing, search)
    quantizer.take(x, scale, base)


def search_site(site: Site, seen: Seen, search: Search, given: tuple[str, ...] = ()) -> None:
    """Fit both quantizers of a site: each to its own tensor first, then in turns to the output of the site in float.

    Those behind softmax and GELU come before their partner, others behind it, as in the official code.
    given: names of quantizers that stay as they are fitted.
    """
    names = ["left_quantizer", "right_quantizer"]
    if not isinstance(site, QuantMatMul):
        table = not isinstance(site.input_quantizer, UniformQuantizer)
        names = ["input_quantizer", "weight_quantizer"] if table else ["weight_quantizer", "input_quantizer"]
    found: dict[str, Quantizer] = {name: getattr(site, name) for name in names}
    found = {name: quantizer for name, quantizer in found.items() if quantizer.enabled and name not in given}
    for name, quantizer in found.items():
        x = operand(site, seen, name)
        if isinstance(quantizer, UniformQuantizer):
            if isinstance(site, QuantMatMul) and x.dim() != 4:
                quantizer.axis = None  # there are no heads
            search_uniform(quantizer, x, search, _zero_points(name, quantizer))
        else:
            _start(quantizer, x)
    for _ in range(search.rounds):
        for name, quantizer in found.items():
            if isinstance(quantizer, UniformQuantizer):
                score = partial(output_errors, site, seen, name)
                search_uniform(quantizer, operand(site, seen, name), search, _zero_points(name, quantizer), score)
            elif isinstance(quantizer, AdaptiveLogQuantizer):
                search_log(site, seen, name, search)
            else:
                groups = quantizer.candidates(operand(site, seen, name).flatten())
                choose(site, seen, name, tuple(map(torch.cat, zip(*groups, strict=True))))


def _zero_points(name: str, quantizer: UniformQuantizer) -> int:
    return min(ZERO_POINTS, 2 ** (quantizer.bits if name == "input_quantizer" else quantizer.bits - 1))


def _start(quantizer: Quantizer, x: Tensor) -> None:
    quantizer.fit(x)
    if isinstance(quantizer, AdaptiveLogQuantizer) and not quantizer.shift:
        quantizer.take(x, torch.ones_like(quantizer.scale), quantizer.base)  # softmax: probabilities reach 1
