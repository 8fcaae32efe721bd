"""Layer-wise relevance propagation through any timm network: autograd, with other rules in place of derivatives.

The rules are those of the reference implementation of relevance in transformers (Chefer et al., arXiv 2012.09838),
which the paper builds on. A ``TorchFunctionMode`` sees every operation of the forward pass and gives those that have a
rule a backward pass of their own; all that only moves numbers (views, windows, rolls, slices, merged patches, the pick
of the class token) is autograd's own, which for such operations is the rule. Only the pictures require gradients: so
what depends on them gets relevance and what does not (weights, biases, position embeddings, masks) gets none.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitalk.nn.quant import sites

EPS = 1e-9
BATCH = 8  # pictures that are propagated at a time; they do not mix

Op = Callable[..., Tensor]
Operands = Sequence[Tensor]
Rule = Callable[[Op, Operands, Tensor], tuple[Tensor, ...]]  # (operation, operands, relevance of what it puts out)


def propagate(
    network: nn.Module, images: Tensor, labels: Tensor | None = None, batch: int = BATCH
) -> tuple[Tensor, dict[str, Tensor]]:
    """(relevance at the pictures, of their shape; sum of its magnitudes at what each site puts out, [pictures]).

    It starts with 1 at the logit of each picture's class. network: exposed (``expose``), no parameter of which requires
    gradients. images: [pictures, channels, height, width]. labels: [pictures], the classes; those that the network
    decides for where None.
    """
    parts = []
    with torch.inference_mode(False):
        for start in range(0, len(images), batch):
            chosen = slice(start, start + batch)
            parts.append(_pass(network, images[chosen], None if labels is None else labels[chosen]))
    pixels, found = zip(*parts, strict=True)
    return torch.cat(pixels), {name: torch.cat([each[name] for each in found]) for name in found[0]}


def _pass(network: nn.Module, images: Tensor, labels: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    images = images.detach().clone().requires_grad_()
    put_out: list[tuple[str, Tensor]] = []

    def keep(name: str, out: Tensor) -> None:
        if out.requires_grad:
            put_out.append((name, out))

    handles = [
        site.register_forward_hook(lambda _, __, out, name=name: keep(name, out))
        for name, site in sites(network).items()
    ]
    try:
        with torch.enable_grad(), Rules(images):
            logits = network(images)
    finally:
        for handle in handles:
            handle.remove()
    labels = logits.argmax(1) if labels is None else labels.to(logits.device)
    start = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    places = [images, *(out for _, out in put_out)]
    at_pixels, *at_sites = torch.autograd.grad(logits, places, start, materialize_grads=True)
    sums = {name: images.new_zeros(len(images)) for name in sites(network)}
    for (name, _), relevance in zip(put_out, at_sites, strict=True):
        sums[name] = sums[name] + by_picture(relevance.abs(), len(images))
    return at_pixels.detach(), {name: value.detach() for name, value in sums.items()}


def by_picture(x: Tensor, pictures: int) -> Tensor:
    """Sums [pictures] of x [pictures * windows, ...], each picture's windows one after the other, as Swin has them."""
    return x.reshape(pictures, -1).sum(1)


def ratio(relevance: Tensor, out: Tensor) -> Tensor:
    """relevance / out, kept finite; 0 where ``out`` is 0."""
    return (relevance / (out + EPS * out.sign())).where(out != 0, 0)


def alpha1(linear: Op, weight: Tensor, _: Op, operands: Operands, relevance: Tensor) -> tuple[Tensor, ...]:
    """Linear layers and convolutions, alpha = 1 and beta = 0: relevance goes to what spoke for it, none to the bias.

    linear: (x, weight) -> what the layer puts out without its bias.
    """
    (x,) = operands
    positive, negative = x.clamp_min(0), x.clamp_max(0)
    out, back = torch.func.vjp(
        lambda p, n: linear(p, weight.clamp_min(0)) + linear(n, weight.clamp_max(0)), positive, negative
    )
    to_positive, to_negative = back(ratio(relevance, out))
    return (positive * to_positive + negative * to_negative,)


def bounded(linear: Op, weight: Tensor, _: Op, operands: Operands, relevance: Tensor) -> tuple[Tensor, ...]:
    """The z^B rule, for the layer that reads pictures: pixels between the least and the largest of their picture."""
    (x,) = operands
    low, high = (f(x, dim=(1, 2, 3), keepdim=True).expand_as(x) for f in (torch.amin, torch.amax))
    out, back = torch.func.vjp(
        lambda x, low, high: (
            linear(x, weight) - linear(low, weight.clamp_min(0)) - linear(high, weight.clamp_max(0))
        ),
        x, low, high,
    )  # fmt: skip
    parts = zip((x, low, high), back(ratio(relevance, out)), strict=True)
    return (sum(operand * part for operand, part in parts),)


def shares(op: Op, operands: Operands, relevance: Tensor) -> tuple[Tensor, ...]:
    """Each operand times what it did for the output: operand * d out / d operand (relevance / out)."""
    out, back = torch.func.vjp(op, *operands)
    parts = back(ratio(relevance, out))
    return tuple(operand * part for operand, part in zip(operands, parts, strict=True))


def product(op: Op, operands: Operands, relevance: Tensor) -> tuple[Tensor, ...]:
    """Two activations multiplied: both have all of the relevance as their share, and keep half of it."""
    return tuple(share / 2 for share in shares(op, operands, relevance))


def residual(pictures: int, op: Op, operands: Operands, relevance: Tensor) -> tuple[Tensor, ...]:
    """Two activations added: their ``shares``, rescaled so that the sums are to each other as their magnitudes.

    Sums are a picture's own; the reference takes them over the batch, which mixes its pictures.
    """
    parts = shares(op, operands, relevance)
    sums = torch.stack([by_picture(part, pictures) for part in parts])
    total = by_picture(relevance, pictures)
    wanted = total * ratio(sums.abs(), sums.abs().sum(0))
    return tuple(
        (part.reshape(pictures, -1) * factor[:, None]).view_as(part)
        for part, factor in zip(parts, ratio(wanted, sums), strict=True)
    )


def pooled(op: Op, operands: Operands, relevance: Tensor) -> tuple[Tensor, ...]:
    """Means: linear layers of equal positive weights, so by ``alpha1`` relevance goes to the positive numbers (ours).

    The reference takes ``shares``, whose denominators a mean brings near zero.
    """
    return shares(op, [x.clamp_min(0) for x in operands], relevance)


def identity(_: Op, operands: Operands, relevance: Tensor) -> tuple[Tensor, ...]:
    """Norms, activations, softmax; a number that is added to a constant or multiplied by one."""
    return tuple(relevance.sum_to_size(x.shape) for x in operands)


LINEAR = {F.linear, F.conv1d, F.conv2d}
POOLS = {torch.mean, Tensor.mean, F.avg_pool2d, F.adaptive_avg_pool2d}
SUMS = {torch.add, Tensor.add, torch.sub, Tensor.sub}
SCALINGS = {torch.mul, Tensor.mul, torch.div, Tensor.div}
PRODUCTS = {torch.matmul, Tensor.matmul, torch.bmm, Tensor.bmm, torch.einsum}
IDENTITIES = {
    F.softmax, torch.softmax, Tensor.softmax, F.gelu, F.relu, torch.relu, Tensor.relu, F.relu6, F.silu, F.hardswish,
    torch.sigmoid, Tensor.sigmoid, torch.tanh, Tensor.tanh, F.layer_norm, F.rms_norm, F.group_norm, F.batch_norm,
}  # fmt: skip


class _Propagated(torch.autograd.Function):
    """An operation whose backward pass is a rule."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, op: Op, *operands: Tensor) -> Tensor:
        ctx.rule, ctx.op = rule, op
        ctx.save_for_backward(*operands)
        return op(*operands)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.rule(ctx.op, ctx.saved_tensors, relevance)


class Rules(TorchFunctionMode):
    """Within it what is computed from ``images`` [pictures, ...] has relevance for its gradient.

    Operations without a rule keep their derivative.
    """

    def __init__(self, images: Tensor):
        super().__init__()
        self.images = images

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute ``func``, with the rule that it has."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            with self:
                return _attention(*args, **kwargs)
        places = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
        rule = self._rule(func, args, kwargs, places) if places else None
        if rule is None:
            return func(*args, **kwargs)

        def op(*operands: Tensor) -> Tensor:
            given = dict(zip(places, operands, strict=True))
            return func(*(given.get(i, a) for i, a in enumerate(args)), **kwargs)

        return _Propagated.apply(rule, op, *(args[i] for i in places))

    def _rule(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], places: list[int]) -> Rule | None:
        if func in LINEAR and places == [0]:
            rest = {name: value for name, value in kwargs.items() if name != "bias"}
            picture = args[0] is self.images and func is F.conv2d
            rule = bounded if picture else alpha1
            return partial(rule, lambda x, weight: func(x, weight, None, *args[3:], **rest), args[1].detach())
        if func in SUMS or func in SCALINGS:
            both = partial(residual, len(self.images)) if func in SUMS else product
            return both if len(places) == 2 else identity
        if func in PRODUCTS:
            return product if len(places) == 2 else shares
        if func in POOLS:
            return pooled
        return identity if func in IDENTITIES else None


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, scale: float | None = None, **__: Any
) -> Tensor:
    """Fused attention in the open, so that its parts have their rules."""
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1) @ v
