"""Official checkpoints (sail-sg/volo) for timm's models, and position tables for pictures of another size."""

from typing import Any

from timm.layers import resample_abs_pos_embed_nhwc, to_2tuple
from timm.models.volo import VOLO
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.checkpoints import unwrapped


def checkpoint_filter_fn(state_dict: dict[str, Any], model: VOLO) -> dict[str, Tensor]:
    """An official VOLO checkpoint, D1 to D5 at any picture size, as a state dict of ``model``.

    timm kept the official names. What is left to do: training checkpoints are unwrapped, the averaged weights first,
    with or without ``module.``; a position table for other pictures is resized bicubically, as the authors did for
    fine-tuning, whether it is stored as a grid or, as in the oldest files, as a row of tokens; and the parts that
    ``model`` was built without (token head, class attention) are dropped.
    """
    state = unwrapped(state_dict)
    if model.pos_embed is not None and "pos_embed" in state:
        state["pos_embed"] = resized(_as_grid(state["pos_embed"]), tuple(model.pos_embed.shape[1:3]))
    absent = ["aux_head."] if model.aux_head is None else []
    if model.post_network is None:
        absent += ["post_network.", "cls_token"]
    return {key: value for key, value in state.items() if not key.startswith(tuple(absent))}


def resized(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A position table [1, height, width, dim] -> [1, *grid, dim], bicubic without anti-aliasing."""
    return resample_abs_pos_embed_nhwc(table, list(grid), antialias=False)


def set_input_size(model: VOLO, img_size: int | tuple[int, int]) -> None:
    """Let ``model`` (timm's or ours) read pictures of ``img_size`` pixels: its position table is resized in place.

    Raises UserError where a side is no multiple of the size of a token, 16 pixels for D1 to D5.
    """
    height, width = to_2tuple(img_size)
    step = token_size(model)
    _check_divides(height, width, step)
    model.pos_embed = nn.Parameter(resized(model.pos_embed.detach(), (height // step, width // step)))


def token_size(model: VOLO) -> int:
    """Side of a token of the second stage, pixels."""
    return model.feature_info[0]["reduction"] * model.pooling_scale


def check_size(model: VOLO, height: int, width: int) -> None:
    """Raise UserError where pictures of ``height`` x ``width`` pixels do not fit the model's grid of tokens.

    timm's models drop the rows and columns that are left over, or fail at the position table.
    """
    step, (rows, columns) = token_size(model), model.pos_embed.shape[1:3]
    _check_divides(height, width, step)
    if (height // step, width // step) != (rows, columns):
        raise UserError(
            f"this model reads pictures of {rows * step} x {columns * step} pixels, got {height} x {width}; "
            "resize them, or build it with that img_size"
        )


def _check_divides(height: int, width: int, step: int) -> None:
    if min(height, width) < step or height % step or width % step:
        raise UserError(
            f"VOLO reads pictures whose sides are multiples of {step} pixels, got {height} x {width}; "
            "resize or pad them"
        )


def _as_grid(table: Tensor) -> Tensor:
    if table.ndim == 4:
        return table
    side = int(table.shape[1] ** 0.5)  # with a class token in front there is one more than a square
    return table[:, table.shape[1] - side**2 :].unflatten(1, (side, side))
