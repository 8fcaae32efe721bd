"""What a VOLO says of every token, and mix-token: two pictures in one pass, each token scored against its own."""

from typing import NamedTuple

import torch
from timm.models.volo import VOLO, rand_bbox
from torch import Tensor, nn

from vitalk.errors import UserError

from .checkpoint import check_size

Box = tuple[int, int, int, int]
"""First row, first column, row and column after the last, in tokens of the second stage."""


class DenseLogits(NamedTuple):
    """image: [batch, classes], of the class token. tokens: [batch, tokens, classes], row by row."""

    image: Tensor
    tokens: Tensor


def dense_logits(model: VOLO, images: Tensor, box: Box | None = None) -> DenseLogits:
    """Both heads of ``model``, whether it trains or not; in eval mode ``model(images)`` is image + max(tokens) / 2.

    images: [batch, channels, height, width]. box: mix-token (arXiv 2106.13112, section 3.4, after 2104.10858): behind
    the stem the tokens in it are those of the batch in reverse order, and so are, behind the token head, the logits:
    the tokens are of ``images`` again. Stage 1 has two tokens for one of the box each way.

    timm's ``forward_train`` cannot be used for it: it returns the class token without the head, and its box is its own.
    Raises UserError for models without both heads and pictures of the wrong size.
    """
    require_both_heads(model)
    check_size(model, *images.shape[-2:])
    x = model.patch_embed(images).permute(0, 2, 3, 1)
    grid = x.shape[1] // model.pooling_scale, x.shape[2] // model.pooling_scale
    if box is not None:
        x = mixed(x, tuple(model.pooling_scale * side for side in box))
    x = model.head_drop(model.norm(model.forward_cls(model.forward_tokens(x))))
    tokens = model.aux_head(x[:, 1:])
    if box is not None:
        tokens = mixed(tokens.unflatten(1, grid), box).flatten(1, 2)
    return DenseLogits(model.head(x[:, 0]), tokens)


def require_both_heads(model: nn.Module) -> None:
    """Raise UserError where ``model`` cannot be trained on token labels."""
    whole = isinstance(model, VOLO) and model.global_pool == "token" and model.post_network is not None
    if not whole or model.aux_head is None:
        raise UserError(
            f"token labels need a VOLO with class token and token head, which this {type(model).__name__} has not; "
            "build it with global_pool='token' and use_aux_head=True"
        )


def mixed(x: Tensor, box: Box) -> Tensor:
    """x [batch, rows, columns, dim] with what is in ``box`` taken from the batch in reverse order; its own inverse."""
    top, left, bottom, right = box
    out = x.clone()
    out[:, top:bottom, left:right] = x.flip(0)[:, top:bottom, left:right]
    return out


def draw_box(rows: int, columns: int) -> Box:
    """A random box on a grid of rows x columns: 1 - u of the area for a uniform u, which is Beta(1, 1), then cut off.

    It lies around a uniform centre; what would stick out is cut off, so that it is smaller on average.
    """
    return rand_bbox((1, rows, columns, 1), torch.rand(()))


def kept(box: Box, tokens: int) -> float:
    """The share of the tokens outside of ``box``, of which there are ``tokens`` in all."""
    top, left, bottom, right = box
    return 1 - (bottom - top) * (right - left) / tokens
