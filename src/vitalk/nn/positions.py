"""Fixed position tables."""

import torch
from torch import Tensor


def sinusoid_table(positions: int, dim: int, base: float = 10000.0) -> Tensor:
    """The sinusoidal position table of the Transformer (arXiv 1706.03762, section 3.5): [positions, dim].

    Column j turns by 1 / base^(2 (j // 2) / dim) radians a position, as sine for even j and as cosine for odd j.
    It is computed in float64 and returned in float32. Raises ValueError where positions or dim is not positive.
    """
    if positions < 1 or dim < 1:
        raise ValueError(f"a position table needs at least one position and one column, got {positions} x {dim}")
    column = torch.arange(dim, dtype=torch.float64)
    turn = base ** (-2 * torch.div(column, 2, rounding_mode="floor") / dim)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * turn
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()
