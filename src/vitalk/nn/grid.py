"""Geometry of tokens on a grid, for masks that depend on where two patches lie."""

import torch
from torch import Tensor


def grid_offsets(height: int, width: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Row and column offsets between all tokens of a grid in raster order, int64 [tokens, tokens] each.

    Entry [n, m] is the position of n minus that of m. Raises ValueError where a side is not positive.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a grid needs at least one row and one column, got {height} x {width}")
    index = torch.arange(height * width, device=device)
    row, column = index // width, index % width
    return row[:, None] - row[None, :], column[:, None] - column[None, :]
