"""Masks that multiply attention scores before the softmax (arXiv 2309.05375, section 3).

Not a decay to minus infinity: a score that is masked to 0 still has the weight e^0, which is more than a negative
score had.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.grid import grid_offsets

MaskKind = Literal["gaussian", "elementwise", "none"]  # no None: timm.create_model drops arguments that are None
Grid = tuple[int, int]

EPS = 1e-5  # what the released code adds to the variance


class GaussianMixtureMask(nn.Module):
    """A sum of Gaussians of the distance on the patch grid, one mask a head.

    mask[h, i, j] = sum_k alpha[k, h] exp(-D[i, j] / (2 (sigma[k, h]^2 + 1e-5))), D the squared distance in patches:
    symmetric, and the same for all pairs of patches whose rows and columns lie equally far apart. It is computed in
    this form, from D, in float32 at least. The released code raises the table exp(-D)^(1/2) to 1 / sigma^2; there
    exp(-D) underflows beyond D = 103, where its mask is zero whatever sigma is: on grids of more than 8 x 8 patches
    it differs from this one. The sign of sigma means nothing; alpha may be negative.

    grid: rows and columns. prefix: leading tokens that are no patches (class token); their rows and columns are 1.
    """

    distance: Tensor
    pair: Tensor

    def __init__(
        self,
        grid: Grid,
        heads: int,
        kernels: int = 5,
        prefix: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kernels < 1:
            raise UserError(f"a Gaussian mixture needs at least one kernel, got kernels={kernels}")
        self.prefix = prefix
        self.sigma = nn.Parameter(torch.empty(kernels, heads, device=device, dtype=dtype))
        self.alpha = nn.Parameter(torch.empty(kernels, heads, device=device, dtype=dtype))
        self.set_grid(grid)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """alpha ~ 2 N(0, 1), sigma ~ 10 + 10 N(0, 1) patches: nearly flat masks of random sign, as the authors have."""
        nn.init.normal_(self.sigma, mean=10.0, std=10.0)
        nn.init.normal_(self.alpha, std=2.0)

    def set_grid(self, grid: Grid) -> None:
        """Mask another grid from now on; the Gaussians stay what they are in patches."""
        self.grid = tuple(grid)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Distances of the offsets that there are, and the offset of each pair of patches; timm calls it too."""
        device, (height, width) = self.sigma.device, self.grid
        row, column = grid_offsets(height, width, device)
        # Flat, for index_select, whose backward pass is some thirty times as fast as that of indexing. Row 0 of the
        # pairs names every offset once, in order.
        self.register_buffer("pair", (row.abs() * width + column.abs()).flatten(), persistent=False)
        self.register_buffer("distance", row[0].square() + column[0].square(), persistent=False)

    def forward(self) -> Tensor:
        """The mask [heads, prefix + patches, prefix + patches]."""
        wide = torch.promote_types(self.sigma.dtype, torch.float32)
        alpha, variance = self.alpha.to(wide), self.sigma.to(wide).square() + EPS
        kernels = alpha[..., None] * (-self.distance.to(wide) / (2 * variance[..., None])).exp()
        mask = kernels.sum(0).index_select(1, self.pair)
        return _with_prefix(mask.unflatten(1, (len(self.distance), -1)), self.prefix)


class ElementwiseMask(nn.Module):
    """The unconstrained mask (ELM): one learnable number a pair of patches, shared by all heads.

    It starts as zeros, so that attention starts uniform. grid and prefix as in ``GaussianMixtureMask``.
    """

    def __init__(
        self, grid: Grid, prefix: int = 0, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.grid, self.prefix = tuple(grid), prefix
        patches = grid[0] * grid[1]
        self.weight = nn.Parameter(torch.zeros(patches, patches, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Zeros."""
        nn.init.zeros_(self.weight)

    def set_grid(self, grid: Grid) -> None:
        """Raises UserError for another grid: a number a pair of patches cannot be carried over."""
        if tuple(grid) != self.grid:
            raise UserError(
                f"an element-wise mask belongs to its grid of {self.grid[0]} x {self.grid[1]} patches, not"
                f" {grid[0]} x {grid[1]}; build the model for that picture size"
            )

    def forward(self) -> Tensor:
        """The mask [prefix + patches, prefix + patches], the same for all heads."""
        return _with_prefix(self.weight, self.prefix)


Mask = GaussianMixtureMask | ElementwiseMask


class MaskedProduct(nn.Module):
    """Scaled queries times keys, times a mask: stands where an attention of ``vitalk.nn.attention`` has matmul1.

    product: the module that multiplies queries and keys, a ``MatMul`` or its quantized form.
    """

    def __init__(self, product: nn.Module, mask: Mask) -> None:
        super().__init__()
        self.product, self.mask = product, mask

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """q [batch, heads, tokens, head_dim], k [batch, heads, head_dim, tokens] -> masked scores of all pairs.

        Raises UserError where there are fewer or more tokens than the mask has places.
        """
        mask = self.mask()
        if q.shape[-2] != mask.shape[-2] or k.shape[-1] != mask.shape[-1]:
            rows, columns = self.mask.grid
            raise UserError(
                f"the mask is one for {rows} x {columns} patches, but the attention sees"
                f" {k.shape[-1] - self.mask.prefix} of them; do not reduce the tokens of a masked model"
            )
        scores = self.product(q, k)
        return scores * mask.to(scores.dtype)


def make_mask(kind: MaskKind, grid: Grid, heads: int, kernels: int, prefix: int, like: Tensor) -> Mask:
    """A fresh mask of device and type of ``like``. Raises UserError for kinds that there are not."""
    dd = {"device": like.device, "dtype": like.dtype}
    if kind == "gaussian":
        return GaussianMixtureMask(grid, heads, kernels, prefix, **dd)
    if kind == "elementwise":
        return ElementwiseMask(grid, prefix, **dd)
    raise UserError(f"there is no mask {kind!r}; choose {', '.join(get_args(MaskKind))}")


def _with_prefix(mask: Tensor, prefix: int) -> Tensor:
    return F.pad(mask, (prefix, 0, prefix, 0), value=1.0) if prefix else mask
