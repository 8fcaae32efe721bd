"""Layer norms whose scale and bias a voice decides, and the tables that they fold into (AdaSpeech, section 2.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5


class ConditionalLayerNorm(nn.Module):
    """Layer norm with gamma = W_gamma E and beta = W_beta E of a speaker's vector E (arXiv 2103.00993, section 2.2).

    dim: of what is normalised. condition: width of the vector. Both maps have biases, as the paper's count of 1.184 M
    tuned parameters asks for, and begin as a plain layer norm: gamma 1, beta 0, whoever speaks.
    """

    def __init__(self, dim: int, condition: int):
        super().__init__()
        self.scale, self.bias = nn.Linear(condition, dim), nn.Linear(condition, dim)
        for part, start in ((self.scale, 1.0), (self.bias, 0.0)):
            nn.init.zeros_(part.weight)
            nn.init.constant_(part.bias, start)

    def affine(self, condition: Tensor) -> Tensor:
        """Vectors [batch, condition] -> gamma and beta, [batch, 2, dim]: all that a voice needs of this norm."""
        return torch.stack([self.scale(condition), self.bias(condition)], 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [batch, time, dim], condition [batch, condition] -> [batch, time, dim]."""
        return modulate(x, self.affine(condition))


class FoldedLayerNorm(nn.Module):
    """What is left of a ``ConditionalLayerNorm`` when all voices are known: gamma and beta by a voice's number.

    affine: [voices, 2, dim].
    """

    def __init__(self, affine: Tensor):
        super().__init__()
        self.register_buffer("affine", affine)

    def forward(self, x: Tensor, voice: Tensor) -> Tensor:
        """x [batch, time, dim], voice: int64 [batch] -> [batch, time, dim]."""
        return modulate(x, self.affine[voice])


def modulate(x: Tensor, affine: Tensor) -> Tensor:
    """x [batch, time, dim] normalised, times gamma plus beta, affine [batch, 2, dim]."""
    gamma, beta = affine[:, :, None].unbind(1)
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * gamma + beta


def norms(net: nn.Module) -> dict[str, ConditionalLayerNorm]:
    """The conditional layer norms within ``net`` by name, in the order in which they were made."""
    return {name: part for name, part in net.named_modules() if isinstance(part, ConditionalLayerNorm)}
