"""The learned memory through which the decoder sees the latent sequence (arXiv 2404.18094, MAVAE)."""

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.attention import attend


class Memory(nn.Module):
    """m = softmax((z Wq) (M Wk)^T / sqrt(d)) (M Wv): each frame as a mixture of what ``slots`` rows of M hold.

    z [batch, dim, time] -> [batch, dim, time]. heads: each attends for itself; the paper's number is (unconfirmed).
    With one slot there is nothing to choose, and all frames become the same.
    """

    def __init__(self, dim: int, slots: int = 1000, heads: int = 1):
        super().__init__()
        if slots < 1 or dim % heads:
            raise UserError(
                f"a memory of {slots} slots, width {dim} and {heads} heads cannot be; heads divide the width"
            )
        self.heads, self.slots = heads, nn.Parameter(torch.randn(slots, dim))
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))

    def forward(self, z: Tensor) -> Tensor:  # noqa: D102
        q, k = self._asked(z)
        v = self._split(self.value(self.slots)[None].expand(len(z), -1, -1))
        return attend(q, k, v).transpose(1, 2).flatten(2).transpose(1, 2)

    def weights(self, z: Tensor) -> Tensor:
        """How much of each slot each frame takes, [batch, heads, time, slots]; rows sum to 1."""
        q, k = self._asked(z)
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)

    def _asked(self, z: Tensor) -> tuple[Tensor, Tensor]:
        keys = self.key(self.slots)[None].expand(len(z), -1, -1)
        return self._split(self.query(z.transpose(1, 2))), self._split(keys)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
