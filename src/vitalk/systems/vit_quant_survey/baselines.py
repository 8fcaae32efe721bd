"""The survey's post-training baselines: which quantizer sits where, and how its range is found (arXiv 2405.00314)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.quant import (
    MINMAX,
    OMSE,
    PERCENTILE,
    Log2Quantizer,
    LogSqrt2Quantizer,
    Policy,
    Quantizer,
    QuantLinear,
    QuantMatMul,
    Ranges,
    TwinUniformQuantizer,
    UniformQuantizer,
    calibrate,
    find_pairs,
    fold,
    observe,
    place,
    quantizers,
    sites,
)
from vitalk.nn.quant.calibrate import check, check_choice
from vitalk.nn.quant.nonuniform import TableQuantizer
from vitalk.nn.quant.policy import Make
from vitalk.nn.quant.search import STEPS, alternate, choose, decided
from vitalk.nn.quant.spectrum import Spectrum

Attention = Literal["uniform", "log2", "log-sqrt2", "twin", "float"]
Observer = Literal["minmax", "percentile", "omse", "ema"]
NormSide = Literal["outputs", "inputs"]
TABLES, SAMPLE = 16, 2**17  # that a table's search tries; values that preselect them
MOMENTUM, BATCHES = 0.95, 8  # of the running ranges: I-ViT's; so many batches are made of the pictures


class EMAQuantizer(UniformQuantizer):
    """A uniform quantizer whose range is a running average of those of eight batches of the data."""

    def candidates(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The one range. rows: [rows, count], the batches one after the other."""
        low, high = rows.aminmax(dim=1)
        for number, part in enumerate(rows.chunk(BATCHES, 1)):
            sides = part.aminmax(dim=1)
            share = 1.0 if number == 0 else 1 - MOMENTUM
            low, high = torch.lerp(low, sides[0], share), torch.lerp(high, sides[1], share)
        return super().candidates(torch.stack([low, high], 1))


class PowerOfTwoQuantizer(UniformQuantizer):
    """Channel scales that are powers of two of one scale, with one zero point (PTF, FQ-ViT, arXiv 2111.13824).

    For channels along the last axis. The coarsest scale covers the whole tensor; each channel takes the one, out of
    ``factors`` that halve, with the least squared error. One factor is min-max of the tensor.
    """

    def __init__(self, bits: int, factors: int = 4):
        super().__init__(bits, axis=-1, ranges=MINMAX)
        self.factors = factors

    def candidates(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and zero points, each [factors, channels]. rows: [channels, count]."""
        scale, zero = super().candidates(torch.stack(rows.aminmax()).view(1, 2))
        halved = scale * torch.exp2(-torch.arange(self.factors, dtype=rows.dtype, device=rows.device))[:, None]
        return halved.expand(-1, len(rows)).contiguous(), zero.expand(self.factors, len(rows)).contiguous()


class NoisyQuantizer(UniformQuantizer):
    """Adds a fixed noise to each channel of a linear layer's input before it rounds (NoisyQuant, arXiv 2211.16056).

    The noise is uniform within plus and minus a share of the step, the share with the least squared error; after
    ``subtract`` it is taken off again, in the layer's bias.
    """

    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    noise: Tensor

    def __init__(self, bits: int, ranges: Ranges = OMSE):
        super().__init__(bits, ranges=ranges)
        self.register_buffer("noise", torch.empty(0))

    def quantize(self, x: Tensor) -> Tensor:
        """x with the noise, rounded."""
        return super().quantize(x + self.noise)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Range first, then the noise."""
        self.noise = x.new_zeros(x.shape[-1])
        super().fit(x)
        generator = torch.Generator().manual_seed(0)
        pattern = (torch.rand(x.shape[-1], generator=generator) * 2 - 1).to(x) * self.scale
        tries = torch.stack([share * pattern for share in self.shares])
        errors = torch.stack([(UniformQuantizer.quantize(self, x + t) - t - x).square().mean() for t in tries])
        self.noise = tries[int(errors.argmin())]


class QuantNorm(nn.LayerNorm):
    """A LayerNorm with a quantizer on its input, which integer-only inference needs (FQ-ViT)."""

    def __init__(self, norm: nn.LayerNorm, quantizer: Quantizer):
        super().__init__(norm.normalized_shape, norm.eps, norm.weight is not None, device="meta")
        self.weight, self.bias, self.input_quantizer = norm.weight, norm.bias, quantizer

    def forward(self, x: Tensor) -> Tensor:
        """x [..., dim] -> the same shape."""
        return super().forward(self.input_quantizer(x))


def uniform(
    model: nn.Module,
    images: Tensor,
    weight_bits: int = 8,
    act_bits: int = 8,
    observer: Observer = "minmax",
    attention: Attention = "uniform",
    integer: bool = True,
    attention_bits: int | None = None,
    progress: bool = False,
) -> nn.Module:
    """Uniform quantizers throughout, their ranges taken by an observer.

    observer: "minmax", "percentile" (99.99 %), "omse" (arXiv 1902.06822) or "ema" (running averages over batches).
    Weights: the largest value of each row, or by squared error too ("omse").
    See ``vit_quant_survey`` for the other arguments.
    """
    ranges = {"minmax": MINMAX, "percentile": PERCENTILE, "omse": OMSE, "ema": MINMAX}
    if observer not in ranges:
        raise UserError(f"observer must be one of {', '.join(ranges)}, got {observer}")
    inputs = partial(EMAQuantizer if observer == "ema" else UniformQuantizer, ranges=ranges[observer])
    weights = partial(UniformQuantizer, axis=0, symmetric=integer, ranges=OMSE if observer == "omse" else MINMAX)
    return _calibrated(
        model, images, weight_bits, act_bits, weights, inputs, attention, attention_bits, progress=progress
    )  # fmt: skip


def noisyquant(
    model: nn.Module,
    images: Tensor,
    weight_bits: int = 8,
    act_bits: int = 8,
    attention: Attention = "uniform",
    integer: bool = True,
    attention_bits: int | None = None,
    progress: bool = False,
) -> nn.Module:
    """ "omse" with ``NoisyQuantizer`` on the inputs of linear layers; the biases take the noise off again.

    (The paper searches the noise for the layer's output; here it is the rounding error of the input, ours.)
    """
    weights = partial(UniformQuantizer, axis=0, symmetric=integer, ranges=OMSE)
    inputs = partial(UniformQuantizer, ranges=OMSE)

    def add_noise(placed: nn.Module) -> None:
        for site in sites(placed).values():
            if isinstance(site, QuantLinear):
                site.input_quantizer = NoisyQuantizer(site.input_quantizer.bits)

    made = _calibrated(
        model, images, weight_bits, act_bits, weights, inputs, attention, attention_bits, add_noise, progress
    )  # fmt: skip
    with torch.inference_mode(False), torch.no_grad():
        for site in sites(made).values():
            if isinstance(site, QuantLinear) and site.input_quantizer.enabled:
                moved = -(site.weight_quantizer(site.weight) @ site.input_quantizer.noise)
                site.bias = nn.Parameter(moved if site.bias is None else site.bias + moved)
    return made


def fq_vit(
    model: nn.Module,
    images: Tensor,
    weight_bits: int = 8,
    act_bits: int = 8,
    attention: Attention = "log2",
    integer: bool = True,
    attention_bits: int | None = None,
    norms: NormSide = "outputs",
    factors: int = 4,
    progress: bool = False,
) -> nn.Module:
    """FQ-ViT (arXiv 2111.13824): power-of-two factors for the channels around LayerNorm, log2 for attention; min-max.

    norms: "outputs" gives the inputs of the layers behind a LayerNorm channel scales, which fold into both without
    any rounding, since they are powers of two: what is deployed (ours). "inputs" is the paper: all LayerNorms have
    quantized inputs, as integer LayerNorms need; runtimes compute those in float, so it is simulated.
    factors: powers of two that a channel may choose from; 1 is one scale a tensor, the paper's baseline.
    """
    check_choice("norms", norms, NormSide)
    weights = partial(UniformQuantizer, axis=0, symmetric=integer, ranges=MINMAX)
    channels = partial(PowerOfTwoQuantizer, factors=factors)
    pairs: list[Any] = []

    def widen(placed: nn.Module) -> None:
        if norms == "inputs":
            for name, norm in list(placed.named_modules()):
                if isinstance(norm, nn.LayerNorm):
                    placed.set_submodule(name, QuantNorm(norm, channels(act_bits)))
            return
        pairs.extend(find_pairs(placed, images[:1]))
        for _, linears in pairs:
            for linear in linears:
                linear.input_quantizer = channels(act_bits)

    made = _calibrated(
        model, images, weight_bits, act_bits, weights, partial(UniformQuantizer, ranges=MINMAX), attention,
        attention_bits, widen, progress,
    )  # fmt: skip
    with torch.inference_mode(False):
        for norm, linears in pairs:
            fold(norm, linears, common=lambda scale, zero: (scale, zero, scale.min(), zero[0]))
    return made


def ptq4vit(
    model: nn.Module,
    images: Tensor,
    weight_bits: int = 8,
    act_bits: int = 8,
    attention: Attention = "twin",
    integer: bool = True,
    attention_bits: int | None = None,
    candidates: int = 100,
    progress: bool = False,
) -> nn.Module:
    """PTQ4ViT (arXiv 2111.12293): twin-uniform softmax and GELU, all scales searched by Hessian-weighted output errors.

    candidates: shares of the largest value that each search tries, the paper's 100. With ``integer`` the inputs behind
    a GELU have one scale, since no runtime multiplies two; the search is the same.
    """
    check(model, images)
    weights = partial(UniformQuantizer, axis=0, symmetric=integer)
    gelu = None if integer else partial(TwinUniformQuantizer, signed=True)
    with torch.inference_mode(False):
        images = images.detach().clone()
        policy = _policy(weights, UniformQuantizer, attention, attention_bits, gelu)
        made = place(model, weight_bits, act_bits, policy, images[:1])
        seen = observe(made, images, decided)
        shares = STEPS[:: max(len(STEPS) // candidates, 1)]
        for name, site in sites(made).items():
            if name not in seen:
                continue
            product = isinstance(site, QuantMatMul)
            names = ("left_quantizer", "right_quantizer") if product else ("weight_quantizer", "input_quantizer")
            for _ in range(3):
                alternate(site, seen[name], names, rounds=1, shares=shares)
                for which in names:
                    if isinstance(quantizer := getattr(site, which), TableQuantizer):
                        choose(site, seen[name], which, nearest_tables(quantizer, seen[name].inputs[0]))
        left = {name for name, quantizer in quantizers(made).items() if not quantizer.fitted}
        calibrate(made, images, progress, only=left.__contains__)
    return made


def nearest_tables(quantizer: TableQuantizer, x: Tensor) -> tuple[Tensor, ...]:
    """The candidates for a table, those sixteen with the least rounding error of x: each is a pass through the site."""
    x = x.reshape(-1)[:: -(-x.numel() // SAMPLE)]
    found = [torch.cat(column) for column in zip(*quantizer.candidates(x), strict=True)]
    values, edges = quantizer.values(*found), quantizer.edges(*found)
    if bool(edges[0, 0] > edges[0, -1]):
        values, edges = values.flip(1), edges.flip(1)
    best = Spectrum(x).errors(values, edges).topk(min(TABLES, len(values)), largest=False).indices
    return tuple(column[best] for column in found)


def softmax_quantizer(attention: Attention, inputs: Make, bits: int | None) -> Make:
    """What makes the quantizer of attention probabilities; bits: its own, or None for those of the activations."""
    kinds: dict[str, Make] = {
        "uniform": inputs,
        "log2": Log2Quantizer,
        "log-sqrt2": LogSqrt2Quantizer,
        "twin": TwinUniformQuantizer,
    }
    if attention not in kinds:
        raise UserError(f"attention must be one of {', '.join(get_args(Attention))}, got {attention}")
    return kinds[attention] if bits is None else lambda _: kinds[attention](bits)


def _policy(
    weights: Make, inputs: Make, attention: Attention, attention_bits: int | None, gelu: Make | None = None
) -> Policy:
    if attention == "float":
        return Policy(weights, inputs, None, gelu=gelu)
    return Policy(weights, inputs, inputs, softmax_quantizer(attention, inputs, attention_bits), gelu)


def _calibrated(
    model: nn.Module, images: Tensor, weight_bits: int, act_bits: int, weights: Make, inputs: Make,
    attention: Attention, attention_bits: int | None, change: Callable[[nn.Module], None] | None = None,
    progress: bool = False,
) -> nn.Module:  # fmt: skip
    check(model, images)
    with torch.inference_mode(False):
        images = images.detach().clone()
        made = place(model, weight_bits, act_bits, _policy(weights, inputs, attention, attention_bits))
        if change is not None:
            change(made)
        calibrate(made, images, progress)
    return made


BASELINES: dict[str, Callable[..., nn.Module]] = {
    **{observer: partial(uniform, observer=observer) for observer in get_args(Observer)},
    "ptq4vit": ptq4vit,
    "fq_vit": fq_vit,
    "noisyquant": noisyquant,
}


def vit_quant_survey(
    model: nn.Module,
    images: Tensor,
    weight_bits: int = 8,
    act_bits: int = 8,
    method: str = "fq_vit",
    attention: Attention | None = None,
    integer: bool = True,
    progress: bool = False,
    **options: Any,
) -> nn.Module:
    """A copy of ``model``, quantized by one of ``BASELINES`` (fake quantization, eval mode).

    model: any timm ViT, DeiT or Swin, or a ``Trunk``. images: calibration pictures [count, channels, height, width],
    normalised as in training. weight_bits, act_bits: 2 to 8; pictures always have 8.
    attention: the quantizer of attention probabilities, "uniform", "log2", "log-sqrt2" or "twin"; "float" leaves both
    attention products in float (deployment); by default the method's own. ``attention_bits=4`` gives it bits of its
    own, as FQ-ViT's 8/8/4.
    integer: symmetric weights, whole zero points, one scale a tensor: what runtimes multiply; False is the papers'
    protocol. options: the method's own, see there.

    Raises UserError for methods, bits, pictures, weights and settings that cannot be.
    """
    if method not in BASELINES:
        raise UserError(f"method must be one of {', '.join(BASELINES)}, got {method}")
    own = {} if attention is None else {"attention": attention}
    return BASELINES[method](
        model, images, weight_bits, act_bits, integer=integer, progress=progress, **own, **options
    )  # fmt: skip
