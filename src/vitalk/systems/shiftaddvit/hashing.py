"""Kernel-based supervised hashing of queries and keys (Ecoformer, arXiv 2209.09004), fitted once and stored."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.precision import full_precision

from .shift import straight

EXTREMES = 10  # most and least similar entries of a row that the codes are fitted to
PICTURES = 16  # that the fit looks at, at most: it holds their similarities, [pictures, heads, tokens, tokens]
STEPS, LR, MOMENTUM = 100, 5e-4, 0.9


class KernelHash(nn.Module):
    """Unit vectors [batch, heads, tokens, dim] -> binary codes [batch, heads, tokens, bits] (arXiv 2306.06446, KSH).

    code = 1[A (k(x) - mean) > 0], k(x)_j = exp(-|x - a_j|^2 / (2 sigma)), with sigma the mean squared distance of a
    picture's head. The gradient passes where the projection lies between 0 and 1.

    bits: of a code. anchors: vectors a_j that kernels are centred on. Buffers ``A`` [heads, bits, anchors], ``mvec``
    [1, heads, 1, anchors], ``anchor`` [1, heads, anchors, dim] and the flag ``fitted``, so that a saved model is
    whole. The first pass in training mode fits them; an unfitted one in eval mode raises UserError, as do bits and
    anchors below 1, and fewer tokens than anchors in the fit.
    """

    def __init__(self, heads: int, dim: int, bits: int = 16, anchors: int = 25):
        super().__init__()
        if bits < 1 or anchors < 1:
            raise UserError(f"hashing needs at least one bit and one anchor, got {bits} bits and {anchors} anchors")
        self.register_buffer("A", torch.randn(heads, bits, anchors))
        self.register_buffer("mvec", torch.zeros(1, heads, 1, anchors))
        self.register_buffer("anchor", torch.zeros(1, heads, anchors, dim))
        self.register_buffer("fitted", torch.tensor(False))
        self.ready = False  # the flag without a look at the device
        self.register_load_state_dict_post_hook(_read_flag)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, heads, tokens, dim], of length 1 -> codes in {0, 1}, [batch, heads, tokens, bits]."""
        if not (self.ready or torch.compiler.is_exporting()):
            if not self.training:
                raise UserError("the hashing was never fitted: train a step, or call fit_hashing(model, images) first")
            self.fit(x)
        with full_precision(x):
            y = (self._kernel(x.float()) - self.mvec) @ self.A.transpose(1, 2).float()
            return straight(F.hardtanh(y, 0.0, 1.0), (y.detach() > 0).to(y.dtype))

    def fit(self, x: Tensor, anchors: Tensor | None = None) -> None:
        """Set anchors, mean and projection from x [batch, heads, tokens, dim], bit by bit, each the best so far.

        anchors: [heads, anchors, dim]; None takes tokens of the first picture at random.
        The target is +1 for the ten largest and -1 for the ten smallest similarities of each row (fewer where there
        are fewer than twenty tokens), times the number of bits, less what earlier bits explain. A bit's 100 steps
        of SGD are kept where the loss of its hard signs falls.
        """
        count, tokens = self.A.shape[2], x.shape[2]
        if tokens < count:
            raise UserError(f"{count} anchors cannot be chosen from {tokens} tokens; set fewer anchors or use pictures "
                            "with more tokens")  # fmt: skip
        with torch.no_grad(), full_precision(x):
            x = x[:PICTURES].float()
            if anchors is None:
                anchors = x[0, :, torch.randperm(tokens, device=x.device)[:count]]
            write(self.anchor, anchors[None])
            kernel = self._kernel(x)
            write(self.mvec, kernel.mean((0, 2), keepdim=True))
            self._greedy(kernel - self.mvec, similarity(x) * self.A.shape[1])
        write(self.fitted, torch.tensor(True))
        self.ready = True

    def _greedy(self, kernel: Tensor, target: Tensor) -> None:
        found = []
        for bit in range(self.A.shape[1]):
            old = self.A[:, bit].clone()
            new = self._descend(kernel, target, old)
            signs = [torch.where(project(kernel, a) > 0, 1.0, -1.0) for a in (old, new)]
            before, after = (self._loss(y, target) for y in signs)
            better = bool(after < before)
            found.append(new if better else old)
            y = signs[better]
            target = target - y[..., :, None] * y[..., None, :]
        write(self.A, torch.stack(found, 1))

    def _descend(self, kernel: Tensor, target: Tensor, start: Tensor) -> Tensor:
        """SGD with Nesterov momentum on -y^T S y with y = tanh(z / 2), its gradient written out: thrice as fast."""
        a, speed = start, torch.zeros_like(start)
        both, back = target + target.transpose(-2, -1), kernel.transpose(-2, -1)
        scale = -0.5 / (kernel.shape[0] * kernel.shape[1] * kernel.shape[2] * self.A.shape[1])
        for _ in range(STEPS):
            y = (project(kernel, a) / 2).tanh()[..., None]
            grad = scale * (back @ ((both @ y) * (1 - y.square())))[..., 0].sum(0)
            speed = MOMENTUM * speed + grad
            a = a - LR * (grad + MOMENTUM * speed)
        return a

    def _loss(self, y: Tensor, target: Tensor) -> Tensor:
        explained = ((y[..., None, :] @ target)[..., 0, :] * y).sum(-1)
        return -explained.mean() / (y.shape[-1] * self.A.shape[1])

    def _kernel(self, x: Tensor) -> Tensor:
        # |x|^2 + |a|^2 - 2 x a: no [tokens, anchors, dim] differences are held
        anchor = self.anchor.transpose(2, 3).float()
        distance = x.square().sum(3, keepdim=True) + anchor.square().sum(2, keepdim=True) - 2 * (x @ anchor)
        sigma = distance.mean((2, 3), keepdim=True)
        return (-distance / (2 * sigma)).exp()


def write(buffer: Tensor, value: Tensor) -> None:
    """Overwrite a buffer, also one of a model that was built in inference mode."""
    with torch.inference_mode(buffer.is_inference()):
        buffer.copy_(value)


def project(kernel: Tensor, a: Tensor) -> Tensor:
    """kernel [batch, heads, tokens, anchors], a [heads, anchors] -> [batch, heads, tokens]."""
    return (kernel @ a[..., None])[..., 0]


def similarity(x: Tensor, extremes: int = EXTREMES) -> Tensor:
    """The target of the fit: x [batch, heads, tokens, dim] -> {-1, 0, 1} [batch, heads, tokens, tokens]."""
    products = x @ x.transpose(-2, -1)
    k = min(extremes, x.shape[-2] // 2)
    target = torch.zeros_like(products)
    target.scatter_(-1, products.topk(k).indices, 1.0)
    return target.scatter_(-1, products.topk(k, largest=False).indices, -1.0)


@torch.no_grad()
def fit_hashing(model: nn.Module, images: Tensor) -> nn.Module:
    """Fit every hashing of ``model`` that is not fitted yet, on one batch of pictures; the same model.

    images: [batch, 3, height, width], normalised. Nothing else of the model changes.
    """
    unfitted = [m for m in model.modules() if isinstance(m, KernelHash) and not m.ready]
    for module in unfitted:
        module.train()
    try:
        model(images)
    finally:
        for module in unfitted:
            module.train(model.training)
    return model


def _read_flag(module: KernelHash, _: Any) -> None:
    module.ready = bool(module.fitted)
