"""The neighbourhood that a position attends to, and maps laid out so that a step to a neighbour is one offset."""

from itertools import product
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor

from vitalk.errors import UserError

Padding = Literal["zeros", "masked", "circular"]


class Window:
    """The taps of a convolution of stride 1 that keeps the size of its map (arXiv 2310.04134).

    kernel_size, dilation: as in ``nn.Conv2d``, one number or (rows, columns).
    padding: what lies beyond the border. "zeros" attends to zeros, whose scores of 0 take part in the softmax, so that
    positions at the border lose mass, as in the official code; "masked" leaves taps beyond the border out; "circular"
    goes on at the opposite side.
    Raises UserError for even kernels, which have no centre, dilations below one and other paddings.

    The layout: a padded map, its rows one after the other, is a line on which a neighbour is a fixed number of places
    away. Every tap is thus one slice of the line for the whole map. The price is that between two rows of queries lie
    places that belong to none, as many as a row has padding; they are dropped in the end.
    """

    def __init__(
        self, kernel_size: int | tuple[int, int], dilation: int | tuple[int, int] = 1, padding: Padding = "zeros"
    ) -> None:
        self.kernel, self.dilation, self.padding = to_2tuple(kernel_size), to_2tuple(dilation), padding
        if len(self.kernel) != 2 or any(k < 1 or k % 2 == 0 for k in self.kernel):
            raise UserError(f"an MSA-Conv window has an odd number of rows and columns, not {kernel_size}")
        if len(self.dilation) != 2 or min(self.dilation) < 1:
            raise UserError(f"dilation must be 1 or more, not {dilation}")
        if padding not in get_args(Padding):
            raise UserError(f"padding must be one of {', '.join(get_args(Padding))}, not {padding}")
        # How far the window reaches to each side, in rows and columns.
        self.reach = tuple(d * (k // 2) for k, d in zip(self.kernel, self.dilation, strict=True))

    def __repr__(self) -> str:
        return f"Window({self.kernel}, {self.dilation}, {self.padding!r})"

    def pad(self, x: Tensor) -> Tensor:
        """[..., height, width] with ``reach`` more rows and columns on each side."""
        rows, columns = self.reach
        if self.padding != "circular":
            return F.pad(x, (columns, columns, rows, rows))
        # Not F.pad, which refuses to go round more than once.
        for dim, reach in ((-2, rows), (-1, columns)):
            size = x.shape[dim]
            x = x.index_select(dim, torch.arange(-reach, size + reach, device=x.device) % size)
        return x

    def bias(self, x: Tensor) -> Tensor | None:
        """What is added to the scores of a map like x, -inf beyond its border: [taps, places], None for nothing."""
        if self.padding != "masked":
            return None
        rows, columns = self.reach
        size, width = x.shape[-2:], x.shape[-1] + 2 * columns
        beyond = F.pad(x.new_zeros(1, 1, *size), (columns, columns, rows, rows), value=float("-inf"))
        return line(F.unfold(beyond, self.kernel, self.dilation).view(-1, *size), width)


def offsets(kernel: list[int], dilation: list[int], width: int) -> list[int]:
    """Where each tap's key lies from its query on the line, in places, taps row by row; width: of the padded map."""
    return [i * dilation[0] * width + j * dilation[1] for i, j in product(range(kernel[0]), range(kernel[1]))]


def line(x: Tensor, padded_width: int) -> Tensor:
    """A map of queries on the line of its padded keys: [..., height, width] -> [..., places]."""
    gap = padded_width - x.shape[-1]
    places = x.shape[-2] * padded_width - gap
    return F.pad(x, (0, gap)).flatten(-2)[..., :places]


def unline(x: Tensor, padded_width: int, width: int) -> Tensor:
    """The opposite of ``line``: [..., places] -> [..., height, width], a view where nothing must be padded."""
    gap = padded_width - width
    return F.pad(x, (0, gap)).unflatten(-1, (-1, padded_width))[..., :width]
