"""How well tables of values stand for some data: sorted once, then any number of tables in one pass."""

import torch
from torch import Tensor


class Spectrum:
    """Numbers x, sorted, with running sums; ``errors`` then needs no look at the numbers themselves."""

    def __init__(self, x: Tensor):
        self.sorted = x.reshape(-1).sort().values
        exact = self.sorted.double()
        zero = exact.new_zeros(1)
        self.sums = torch.cat([zero, exact.cumsum(0)])
        self.squares = float(exact.square().sum())

    def errors(self, values: Tensor, edges: Tensor) -> Tensor:
        """Mean squared error of rounding x, [tables].

        values: [tables, codes]. edges: [tables, codes - 1], not falling: values[i] stands for what lies between
        edges[i - 1] and edges[i].
        """
        cuts = torch.searchsorted(self.sorted, edges.to(self.sorted.dtype).contiguous())
        ends = torch.full_like(cuts[:, :1], len(self.sorted))
        cuts = torch.cat([torch.zeros_like(ends), cuts, ends], 1)
        counts, sums = cuts.diff(dim=1), self.sums[cuts].diff(dim=1)
        values = values.double()
        return (self.squares + (values.square() * counts - 2 * values * sums).sum(1)) / len(self.sorted)
