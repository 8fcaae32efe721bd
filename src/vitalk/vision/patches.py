"""timm's patch embedding, which says in a sentence what pictures it cannot read."""

from typing import Any

from timm.layers import PatchEmbed, to_2tuple
from torch import Tensor

from vitalk.errors import UserError


class Patches(PatchEmbed):
    """timm's patch embedding; arguments and results are its own.

    Raises UserError for pictures that the patches do not tile, and with ``strict_img_size`` for any other size than
    ``img_size``.
    """

    def __init__(
        self, img_size: int | tuple[int, int] = 224, patch_size: int | tuple[int, int] = 16, *args: Any, **kwargs: Any
    ) -> None:
        if img_size is not None:
            check_tiles(to_2tuple(img_size), to_2tuple(patch_size))
        super().__init__(img_size, patch_size, *args, **kwargs)

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: Any = None) -> None:
        """Read pictures of another size from now on. Raises UserError for sizes that do not fit."""
        if patch_size is not None and to_2tuple(patch_size) != self.patch_size:
            raise UserError(
                f"patches of {self.patch_size[0]} pixels are part of the network; build one with patch_size"
            )
        if img_size is not None:
            check_tiles(to_2tuple(img_size), self.patch_size)
        super().set_input_size(img_size)

    def forward(self, images: Tensor) -> Tensor:
        """images [batch, channels, height, width] -> [batch, tokens, embed_dim], or a map where it was built so."""
        size = tuple(images.shape[-2:])
        if self.strict_img_size and size != self.img_size:
            (height, width), (rows, columns) = size, self.img_size
            raise UserError(
                f"the picture has {height} x {width} pixels, the model reads {rows} x {columns}; resize the picture,"
                f" or build the model with img_size={size}, or dynamic_img_size=True where it takes that"
            )
        if not self.dynamic_img_pad:
            check_tiles(size, self.patch_size)
        return super().forward(images)


def check_tiles(size: tuple[int, ...], patch: tuple[int, ...]) -> None:
    """Raises UserError where patches do not tile a picture; sizes in pixels, rows first."""
    if len(size) != 2 or any(side < 1 or side % step for side, step in zip(size, patch, strict=True)):
        raise UserError(
            f"patches of {patch[0]} x {patch[1]} pixels do not tile a picture of {' x '.join(map(str, size))};"
            " resize or crop it, or change patch_size"
        )
