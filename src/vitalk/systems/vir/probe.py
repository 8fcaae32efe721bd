"""One pass of ViR, for fresh processes whose peak memory is watched; imports no training code."""

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from torch import Tensor

from vitalk.memory import peak_memory

from .model import VisionRetention

NAME, PATCH = "vir_tiny_patch16_224", 16


def sized(tokens: int) -> VisionRetention:
    """The probed network for a square picture of so many patches, in eval mode."""
    return timm.create_model(NAME, img_size=PATCH * math.isqrt(tokens)).eval()


def run(form: str, tokens: int, chunk_size: int = 64) -> None:
    """One pass over ``tokens`` patches in "parallel", "recurrent", "chunkwise", or "stream"; nothing for "start".

    The stream's tokens are made as they are read, and its network is that for 196 patches, since a position table
    would grow with the picture.
    """
    with torch.inference_mode():
        if form == "stream":
            model = sized(196)
            _forget_peak()
            model.classify_stream(_tokens(model, tokens, chunk_size))
            return
        model = sized(tokens)
        _forget_peak()
        if form != "start":
            model(torch.randn(1, 3, *model.patch_embed.img_size), form, chunk_size)


def peak(form: str, tokens: int, chunk_size: int = 64) -> int:
    """Largest resident size in bytes of a process that does ``run(form, tokens, chunk_size)`` and nothing else.

    On Linux without what imports held for a moment, so that the peak of "start" can be taken off.
    """
    code = f"from vitalk.systems.vir.probe import run; run({form!r}, {tokens}, {chunk_size})"
    return peak_memory([sys.executable, "-c", code])


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _tokens(model: VisionRetention, tokens: int, chunk_size: int) -> Iterator[Tensor]:
    for start in range(0, tokens, chunk_size):
        yield torch.randn(1, min(chunk_size, tokens - start), model.embed_dim)
    yield model.cls_token
