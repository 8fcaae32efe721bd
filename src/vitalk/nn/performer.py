"""Linear attention through positive random features (Performer, arXiv 2009.14794, section 2.3)."""

import math

import torch
from torch import Tensor, nn

from .precision import full_precision


class PositiveFeatures(nn.Module):
    """The feature map phi(u) = exp(W u - |u|^2 / 2) / sqrt(features), all of whose values are positive.

    W [features, dim] has orthogonal rows of norm sqrt(features); it is drawn once, never trained, and part of the
    state dict, since every draw is another map. In expectation over W, phi(q) phi(k) approaches exp(q k) where
    features = dim; with fewer features the rows are shorter, and at features = dim / 2 it approaches
    exp(q k / 2 - |q|^2 / 4 - |k|^2 / 4) instead: softer logits and a penalty on the norm of the keys.

    The map is computed in float32 also under autocast: in float16 the exponential overflows.
    Raises ValueError for more features than dimensions, whose rows could not all be orthogonal.
    """

    projection: Tensor

    def __init__(
        self, dim: int, features: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if not 1 <= features <= dim:
            raise ValueError(f"features must be between 1 and dim ({dim}) for orthogonal rows, got {features}")
        self.register_buffer("projection", torch.empty(features, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W anew."""
        with torch.no_grad():
            nn.init.orthogonal_(self.projection).mul_(math.sqrt(len(self.projection)))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, dim] -> [batch, tokens, features], float32."""
        with full_precision(x):
            x, projection = x.float(), self.projection.float()
            return (x @ projection.T - x.square().sum(-1, keepdim=True) / 2).exp() / math.sqrt(len(projection))


def linear_attention(q: Tensor, k: Tensor, v: Tensor, eps: float = 1e-8) -> Tensor:
    """Attention whose weights are the products of feature maps: time and memory grow linearly with the tokens.

    q, k [batch, tokens, features], positive; v [batch, tokens, dim] -> [batch, tokens, dim] of v's type.
    Each output is a convex combination of the values, but for ``eps`` in the denominator: where all features of a
    query underflow the output is zero. The sums are float32.
    """
    with full_precision(v):
        weighted = k.float().transpose(-2, -1) @ v.float()
        total = q.float() @ k.float().sum(-2).unsqueeze(-1)
        return (q.float() @ weighted / (total + eps)).to(v.dtype)
