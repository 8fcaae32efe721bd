"""Pictures of what token reduction does to a picture: which patches each token holds, block by block."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vitalk.errors import UserError

from .tokens import Trunk

PANEL = 224  # pixels a side that a panel has at least
DROPPED = (40, 40, 40)  # where no token has a part of the patch any more
BORDER = (255, 255, 255)


def draw_reduction(trunk: Trunk, image: Tensor, picture: Image.Image, path: Path) -> None:
    """One row of panels: the picture, then the tokens behind each block that changed their number.

    trunk: traced or not, it is put back as it was. image: [channels, height, width], as the model reads it. picture:
    what a person sees of it, of the same part of the scene. path: of the PNG.
    Raises UserError where the patches lie on no grid of the model's.
    """
    tracing, training = trunk.trace, trunk.training
    trunk.trace = True
    try:
        with torch.inference_mode():
            stages = [tokens.source[0].float().cpu().numpy() for tokens in trunk.eval().walk(image[None])]
    finally:
        trunk.trace = tracing
        trunk.train(training)
    grid = patch_grid(trunk, image, stages[0].shape[1])
    canvas = enlarged(picture.convert("RGB"), grid)
    panels = [(f"{grid[0]} x {grid[1]} patches", canvas)]
    before = stages[0].shape[0]
    for block, source in enumerate(stages[1:]):
        if source.shape[0] != before:
            panels.append(
                (f"block {block}: {source.shape[0] - trunk.num_prefix_tokens} tokens", paint(canvas, source, grid))
            )
        before = source.shape[0]
    side_by_side(panels).save(path)


def paint(canvas: np.ndarray, source: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The picture with each token's patches in their mean colour and a line around them; dropped patches are dark.

    canvas: uint8 [height, width, 3], which the grid divides. source: [tokens, patches], ``Tokens.source`` of one
    picture; a patch of which several tokens hold a part is shown with the one that holds most of it. A token of one
    patch shows it as it is.
    """
    height, width = canvas.shape[0] // grid[0], canvas.shape[1] // grid[1]
    owner = np.where(source.max(0) > 0, source.argmax(0), len(source)).reshape(grid)
    pixels = owner.repeat(height, 0).repeat(width, 1)
    held = np.bincount(pixels.ravel(), minlength=len(source) + 1)
    colour = np.stack(
        [np.bincount(pixels.ravel(), canvas[..., c].ravel(), len(source) + 1) / held.clip(1) for c in range(3)], -1
    )
    colour[-1] = DROPPED
    alone = (held == height * width) & (np.arange(len(held)) < len(source))
    out = np.where(alone[pixels][..., None], canvas, colour[pixels].round().astype(np.uint8))
    out[:, 1:][pixels[:, 1:] != pixels[:, :-1]] = BORDER
    out[1:][pixels[1:] != pixels[:-1]] = BORDER
    return out.astype(np.uint8)


def enlarged(picture: Image.Image, grid: tuple[int, int]) -> np.ndarray:
    """The picture as uint8 [height, width, 3], large enough to look at, with sides that the grid divides."""
    scale = max(1, math.ceil(PANEL / min(picture.size)))
    sides = [max(1, round(side * scale / cells)) * cells for side, cells in zip(picture.size, grid[::-1], strict=True)]
    return np.asarray(picture.resize(sides, Image.Resampling.BICUBIC))


def patch_grid(trunk: Trunk, image: Tensor, patches: int) -> tuple[int, int]:
    """Rows and columns of the patches of ``image`` [channels, height, width], of which there are ``patches``."""
    embed = trunk.vit.patch_embed
    if hasattr(embed, "dynamic_feat_size"):
        grid = tuple(embed.dynamic_feat_size(tuple(image.shape[-2:])))
    else:
        rows = math.isqrt(patches * image.shape[-2] // image.shape[-1])
        grid = rows, patches // max(rows, 1)
    if grid[0] * grid[1] != patches:
        raise UserError(f"{patches} tokens lie on no grid of {grid[0]} x {grid[1]}, so that they cannot be drawn")
    return grid


def side_by_side(panels: list[tuple[str, np.ndarray]]) -> Image.Image:
    """Panels of one size in a row, each with a line of text above."""
    height, width = panels[0][1].shape[:2]
    font, gap, head = ImageFont.load_default(14), 8, 22
    sheet = Image.new("RGB", (len(panels) * (width + gap) - gap, height + head), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (title, panel) in enumerate(panels):
        left = i * (width + gap)
        draw.text((left + 2, 2), title, "black", font)
        sheet.paste(Image.fromarray(panel), (left, head))
    return sheet
