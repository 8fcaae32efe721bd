"""The differentiable discrete proxy: a count of tokens that gradients can move, and the mask that it stands for."""

import torch
from torch import Tensor, nn


class Proxy(nn.Module):
    """A distribution over how many patches a block keeps (arXiv 2305.17997, section 3.3, eq. 4 to 6).

    Candidates are patches, patches - granularity, ... down to 1 at the least; ``logits`` [candidates] start at 0, so
    about half of the patches stay. prefix: tokens that are kept beside them, in every count that comes out.
    """

    def __init__(self, patches: int, granularity: int = 4, prefix: int = 1):
        super().__init__()
        candidates = torch.arange(patches, 0, -granularity)
        self.logits = nn.Parameter(torch.zeros(len(candidates)))
        self.prefix = prefix
        self.register_buffer("candidates", candidates.float(), persistent=False)
        # A position survives under the candidates that reach past it, which are the leading ones.
        positions = torch.arange(patches + prefix)
        reaching = (patches + prefix - positions + granularity - 1) // granularity
        self.register_buffer("reaching", reaching.clamp(max=len(candidates)) - 1, persistent=False)

    def soft_count(self) -> Tensor:
        """Expected number of patches, a scalar."""
        return (self.candidates * self.logits.softmax(0)).sum()

    def count(self) -> Tensor:
        """Tokens kept, the expectation rounded up and the prefix; the gradient is the expectation's."""
        soft = self.soft_count()
        return soft + (soft.ceil() - soft).detach() + self.prefix

    def kept(self, least: int = 1) -> int:
        """``count`` as a number, at least ``least``."""
        return max(round(self.count().item()), least)

    def survival(self) -> Tensor:
        """[prefix + patches]: how likely each position of the ranking is to stay; the prefix stays."""
        return self.logits.softmax(0).cumsum(0)[self.reaching]

    def mask(self, alive: int) -> Tensor:
        """[prefix + patches] of 1, and 0 for positions from ``count`` up to ``alive``; the gradient is ``survival``'s.

        What died before is left to the masks before: gradients reach those through the ones here.
        """
        survival = self.survival()
        hard = torch.ones_like(survival)
        hard[self.kept() : alive] = 0
        return hard + (survival - survival.detach())

    def extra_repr(self) -> str:
        """What the printed module shows."""
        return f"{int(self.candidates[0])} patches in {len(self.candidates)} steps"
