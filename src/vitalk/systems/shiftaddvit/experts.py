"""A linear layer of two experts, one that multiplies and one that shifts, and the loss that weighs their speed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitalk.errors import UserError

from .shift import ShiftLinear

ALPHA = (0.6, 0.4)  # shares of the latency, multiplier : shift, as in the release


class MoELinear(nn.Module):
    """Each token goes to the multiplier or to the shifts: [..., in] -> [..., out] (arXiv 2306.06446, section 4.2).

    y = p_i E_i(x), i = argmax p, p = softmax(W x + b): the probability lets the router learn. In training Gaussian
    noise of standard deviation 1 / 2 is added to its logits. Tokens are sorted by expert, each expert sees its slice
    alone and the answers are scattered back; an exported graph has no such slices: both experts see all tokens there.

    linear: the trained layer that both experts start from; the router starts near equal chances.
    bits: of the shifts. alpha: the experts' latencies, any scale, as ``balance`` weighs them. weighted: False leaves
    p out as the released gate does, whose router then learns nothing but balance.
    Raises UserError for alphas that are not two positive numbers.
    """

    def __init__(self, linear: nn.Linear, bits: int = 5, alpha: Sequence[float] = ALPHA, weighted: bool = True):
        super().__init__()
        if len(alpha) != 2 or not all(0 < a < float("inf") for a in alpha):
            raise UserError(f"alpha is two positive latencies, of the multiplier and of the shifts; got {alpha}")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.experts = nn.ModuleList([linear, ShiftLinear.from_linear(linear, bits)])
        self.router = nn.Linear(linear.in_features, 2)
        nn.init.trunc_normal_(self.router.weight, std=0.02)
        nn.init.zeros_(self.router.bias)
        self.weighted = weighted
        self.register_buffer("alpha", torch.tensor([a / sum(alpha) for a in alpha]), persistent=False)
        self.losses: list[Tensor] | None = None  # where ``collecting`` wants them
        self.shares: list[Tensor] | None = None
        self.to(linear.weight.device).train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        tokens = x.flatten(0, -2)
        clean = self.router(tokens).float()
        noisy = clean + torch.randn_like(clean) / 2 if self.training else clean
        weight, choice = noisy.softmax(-1).max(-1)
        if self.training:
            loss = balance(clean, noisy, self.alpha)
            if self.losses is not None:
                self.losses.append(loss)
        if self.shares is not None:
            self.shares.append((choice == 0).float().mean().detach())
        if torch.compiler.is_exporting():
            first, second = (expert(tokens) for expert in self.experts)
            out = torch.where(choice[:, None] == 0, first, second)
        else:
            out = dispatch(self.experts, tokens, choice)
        if self.weighted:
            out = out * weight[:, None].to(out.dtype)
        return out.unflatten(0, x.shape[:-1])


def dispatch(experts: Sequence[nn.Module], tokens: Tensor, choice: Tensor) -> Tensor:
    """Every expert's answer to the tokens that chose it: tokens [tokens, in], choice [tokens] -> [tokens, out]."""
    order = choice.argsort(stable=True)
    parts = tokens.index_select(0, order).split(torch.bincount(choice, minlength=len(experts)).tolist())
    answers = torch.cat([expert(part) for expert, part in zip(experts, parts, strict=True)])
    return torch.empty_like(answers).index_copy(0, order, answers)


def balance(clean: Tensor, noisy: Tensor, alpha: Tensor, std: Tensor | float = 0.5) -> Tensor:
    """The latency-aware loss of one router: SCV of importance plus SCV of load, each times alpha (LL-loss).

    clean, noisy: its logits without and with noise, [tokens, experts]. alpha: [experts]. It is least where
    alpha_i n_i is the same for all experts: the slower one gets fewer tokens.
    """
    importance = alpha * clean.softmax(-1).sum(0)
    return scv(importance) + scv(alpha * smooth_load(clean, noisy, std))


def smooth_load(clean: Tensor, noisy: Tensor, std: Tensor | float) -> Tensor:
    """The expected number of tokens of each expert, were its noise drawn again: [tokens, experts] -> [experts].

    P(expert i wins) is the normal distribution's at (clean_i - best noisy logit of the others) / std, so the load has
    a gradient (arXiv 1701.06538, appendix A). std: of the noise, a number or [tokens, experts].
    Clean and noisy logits are of one space here; the release mixes logits and probabilities.
    """
    best, second = noisy.topk(2, dim=-1).values.unbind(-1)
    rival = torch.where(noisy == best[:, None], second[:, None], best[:, None])
    return torch.special.ndtr((clean - rival) / std).sum(0)


def scv(x: Tensor) -> Tensor:
    """The squared coefficient of variation, var / (mean^2 + 1e-10), unbiased: [experts] -> []."""
    return x.var() / (x.mean().square() + 1e-10)


@contextmanager
def collecting(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within, the list holds the balance loss of every pass through a ``MoELinear`` of ``model`` in training mode."""
    found: list[Tensor] = []
    layers = experts_of(model)
    for layer in layers:
        layer.losses = found
    try:
        yield found
    finally:
        for layer in layers:
            layer.losses = None


@torch.inference_mode()
def multiplier_share(model: nn.Module, images: Tensor) -> list[float]:
    """The share of tokens that go to the multiplier in each ``MoELinear``, in eval mode on images [batch, ...].

    Raises UserError where the model has no such layers.
    """
    layers, training = experts_of(model), model.training
    if not layers:
        raise UserError("the model has no mixtures of multiply and shift; convert it with linears='moe'")
    for layer in layers:
        layer.shares = []
    try:
        model.eval()(images)
        return [float(torch.stack(layer.shares).mean()) for layer in layers]
    finally:
        model.train(training)
        for layer in layers:
            layer.shares = None


def experts_of(model: nn.Module) -> list[MoELinear]:
    """All ``MoELinear`` layers of a model, in order."""
    return [module for module in model.modules() if isinstance(module, MoELinear)]
