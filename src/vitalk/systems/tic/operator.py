"""MSA-Conv (arXiv 2310.04134): softmax attention of every position to a convolution's window around it.

The taps are taken one after the other, each as a slice of the whole map, so that keys and values are never unfolded.
Of the two ways to a softmax over them, two passes with the scores kept move fewer bytes than one pass that rescales
its sum at every tap: keeping costs about four reads and writes of a number a head and tap, rescaling two of every
channel. (7 x 7 taps, 2 heads of 32 channels, 56 x 56 positions on one core: 5.0 ms against 6.4; 92 with unfolded maps;
32 for global attention.) The scores are kept for some maps at a time (``KEPT``), and not at all for the backward
pass, which computes them again from queries and keys, as fused attention does.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitalk.errors import UserError

from .window import Window, line, offsets, unline

KEPT = 2**20  # scores that are held at once, 4 MB; more run no faster on a CPU


def msa_conv(
    q: Tensor, k: Tensor, v: Tensor, window: Window, heads: int = 1, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """Attend to the window around each position; q, k, v and the result [batch, channels, height, width].

    heads: into how many equal groups the channels fall, each with a softmax of its own; as many as channels is the
    depth-wise form. scale: of the scores, (channels / heads)^-0.5 where None. dropout: the share of weights dropped.
    Maps of any size, computed in float32 (double for double) and returned in the type of v. Memory beyond inputs and
    output: padded keys and values, and ``KEPT`` scores at most; backward the three gradients. Once differentiable.
    Raises UserError where the shapes differ, heads do not divide the channels, and for dropout outside 0 … 1.
    """
    _check(q, k, v, heads)
    if not 0 <= dropout < 1:
        raise UserError(f"dropout must be at least 0 and below 1, not {dropout}")
    scale = (q.shape[1] // heads) ** -0.5 if scale is None else scale
    if torch.compiler.is_exporting():  # a runtime gets plain products, and plans its memory by itself
        scores = msa_scores(q.float() * scale, k.float(), window, heads)
        return msa_aggregate(scores.softmax(2), v.float(), window).to(v.dtype)
    maps = [_maps(_precise(x), heads) for x in (q, k, v)]
    keys, values = window.pad(maps[1]), window.pad(maps[2])
    seed = int(torch.randint(2**62, ())) if dropout else 0
    kernel, dilation = list(window.kernel), list(window.dilation)
    out, _ = _attend(maps[0], keys, values, window.bias(maps[0]), kernel, dilation, scale, dropout, seed)
    return out.reshape(v.shape).to(v.dtype)


def msa_scores(q: Tensor, k: Tensor, window: Window, heads: int = 1) -> Tensor:
    """Products of queries with the keys in their windows: [batch, channels, height, width] twice ->
    [batch, heads, taps, height, width], taps row by row, neither scaled nor normalised.

    Keys beyond the border score 0, or -inf where the window masks them. Raises UserError as ``msa_conv``.
    """
    _check(q, k, k, heads)
    keys = window.pad(_maps(k, heads))
    width = keys.shape[-1]
    places = offsets(list(window.kernel), list(window.dilation), width)
    scores = _scores(line(_maps(q, heads), width), keys.flatten(2), window.bias(q), places)
    return unline(scores, width, q.shape[-1]).unflatten(0, (-1, heads))


def msa_aggregate(weights: Tensor, v: Tensor, window: Window) -> Tensor:
    """Sums of the values in the windows: weights [batch, heads, taps, height, width], v [batch, channels, height,
    width] -> the shape of v. Raises UserError where the two do not fit.
    """
    heads, size = weights.shape[1], v.shape[-2:]
    _check(v, v, v, heads)
    if weights.shape[2] != window.kernel[0] * window.kernel[1] or weights.shape[-2:] != size:
        raise UserError(f"weights {list(weights.shape)} do not fit values {list(v.shape)} and {window}")
    values = window.pad(_maps(v, heads))
    width = values.shape[-1]
    places = offsets(list(window.kernel), list(window.dilation), width)
    total = _weighted(line(weights.flatten(0, 1), width), values.flatten(2), places)
    return unline(total, width, size[1]).reshape(v.shape)


@torch.library.custom_op("vitalk::msa_conv", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    kernel: list[int],
    dilation: list[int],
    scale: float,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """q [maps, dim, height, width], k and v padded -> (the shape of q, log of the softmax's sums [maps, places])."""
    width, places = k.shape[-1], offsets(kernel, dilation, k.shape[-1])
    q, k, v = line(q * scale, width), k.flatten(2), v.flatten(2)
    out, sums = torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[0], q.shape[2])
    for part, generator in _parts(q, len(places), seed):
        weights = _scores(q[part], k[part], bias, places)
        top = weights.amax(1, keepdim=True)
        total = weights.sub_(top).exp_().sum(1, keepdim=True)
        sums[part] = total.log().add_(top)[:, 0]
        if dropout:
            for weight in weights.unbind(1):
                weight.mul_(_kept(weight, dropout, generator))
        out[part] = _weighted(weights, v[part], places).div_(total)
    return unline(out, width, width - dilation[1] * (kernel[1] - 1)).contiguous(), sums


@torch.library.custom_op("vitalk::msa_conv_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    out: Tensor,
    sums: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    kernel: list[int],
    dilation: list[int],
    scale: float,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; the weights of each tap are computed again, and dropped as before."""
    width, places, size = k.shape[-1], offsets(kernel, dilation, k.shape[-1]), q.shape[-1]
    padded = k.shape[-2:]
    q, grad, out, k, v = line(q * scale, width), line(grad, width), line(out, width), k.flatten(2), v.flatten(2)
    mean = (grad * out).sum(1)
    to_q, to_k, to_v = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    for part, generator in _parts(q, len(places), seed):
        for tap, place in enumerate(places):
            near = (part, slice(None), slice(place, place + q.shape[2]))
            weight = (q[part] * k[near]).sum(1)
            if bias is not None:
                weight += bias[tap]
            weight.sub_(sums[part]).exp_()
            to_weight = (grad[part] * v[near]).sum(1)
            used = weight
            if dropout:
                kept = _kept(weight, dropout, generator)
                to_weight *= kept
                used = weight * kept
            to_v[near].addcmul_(used[:, None], grad[part])
            to_score = to_weight.sub_(mean[part]).mul_(weight)[:, None]
            to_q[part].addcmul_(to_score, k[near])
            to_k[near].addcmul_(to_score, q[part])
    to_q = unline(to_q.mul_(scale), width, size).contiguous()
    return to_q, to_k.unflatten(2, padded), to_v.unflatten(2, padded)


@_attend.register_fake
def _(q, k, v, bias, kernel, dilation, scale, dropout, seed):  # noqa: ANN001, ANN202
    places = q.shape[2] * k.shape[3] - (k.shape[3] - q.shape[3])
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[0], places)


@_attend_backward.register_fake
def _(grad, out, sums, q, k, v, *_):  # noqa: ANN001, ANN002, ANN202
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN001
    q, k, v, bias, *ctx.settings = inputs
    ctx.save_for_backward(*output, q, k, v, bias)


def _backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN001
    return (*_attend_backward(grad, *ctx.saved_tensors, *ctx.settings), *[None] * 6)


_attend.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.vitalk.msa_conv)
def _flops(q_shape, k_shape, v_shape, bias_shape, kernel, *_, **__) -> int:  # noqa: ANN001, ANN002, ANN003
    """Two products, two operations each, of every channel with every tap."""
    maps, dim, height, width = q_shape
    return 4 * kernel[0] * kernel[1] * maps * dim * height * width


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, places: list[int]) -> Tensor:
    """q [maps, dim, places] and padded k on lines -> [maps, taps, places]."""
    count = q.shape[2]
    scores = torch.cat([(q * k[..., place : place + count]).sum(1, keepdim=True) for place in places], 1)
    return scores if bias is None else scores + bias


def _weighted(weights: Tensor, v: Tensor, places: list[int]) -> Tensor:
    """weights [maps, taps, places] and padded v on lines -> [maps, dim, places]."""
    count = weights.shape[2]
    first, *others = weights.split(1, 1)
    total = first * v[..., places[0] : places[0] + count]
    for weight, place in zip(others, places[1:], strict=True):
        total = total.addcmul_(weight, v[..., place : place + count])
    return total


def _parts(q: Tensor, taps: int, seed: int) -> Iterator[tuple[slice, torch.Generator]]:
    """Runs of maps whose scores are held together, the same forward and backward, and the generator of each."""
    step = max(1, KEPT // (taps * q.shape[2]))
    for start in range(0, q.shape[0], step):
        yield slice(start, start + step), torch.Generator(q.device).manual_seed(seed + start)


def _kept(like: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    return torch.empty_like(like).bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)


def _maps(x: Tensor, heads: int) -> Tensor:
    """[batch, channels, height, width] -> [batch * heads, dim, height, width]."""
    return x.unflatten(1, (heads, -1)).flatten(0, 1).contiguous()


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check(q: Tensor, k: Tensor, v: Tensor, heads: int) -> None:
    if q.ndim != 4 or q.shape != k.shape or q.shape != v.shape:
        said = ", ".join(str(list(x.shape)) for x in (q, k, v))
        raise UserError(f"queries, keys and values must be alike, [batch, channels, height, width], not {said}")
    if heads < 1 or q.shape[1] % heads:
        raise UserError(f"{q.shape[1]} channels do not divide into {heads} heads; change one of them")
