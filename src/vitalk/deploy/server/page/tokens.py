"""The tab of token reduction: which tokens of a picture survive, block by block, at a keep rate."""

import asyncio
import base64
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from vitalk.deploy.pictures import read_picture
from vitalk.errors import UserError

from ..service import Service
from .common import figure, guarded, notice
from .uploads import Uploads

if TYPE_CHECKING:
    from vitalk.deploy.load import Loaded

ABOUT = """ToMe ([arXiv 2210.09461](https://arxiv.org/abs/2210.09461)) merges the tokens that are most alike in every
block of a vision transformer. Each patch is drawn in the mean colour of the token that holds it."""
NEEDS = 'This tab needs torch, which is not installed here; run: pip install "vitalk[train]"'


def tokens_tab(service: Service, uploads: Uploads) -> None:
    """Lay the tab out, within the blocks that are open; without torch it says what to install."""
    gr.Markdown(ABOUT)
    if not all(map(find_spec, ("torch", "timm"))):
        gr.HTML(notice(NEEDS), elem_id="tokens-notice")
        return
    with gr.Row():
        with gr.Column():
            picture = uploads.picture("Picture to reduce", "reduced")
        with gr.Column():
            keep = gr.Slider(
                0.1, 1.0, 0.4, step=0.05, label="Keep rate", info="Share of the tokens left at the end.", elem_id="keep"
            )
            button = gr.Button("Reduce", variant="primary", elem_id="reduce")
    notes = gr.HTML(elem_id="tokens-notice")
    drawn = gr.HTML(elem_id="tokens-picture")
    own = ThreadPoolExecutor(1, "tokens")  # the model is put into another mode while it is drawn

    @guarded(service, 1)
    async def reduce(file: dict | None, keep: object) -> tuple[str, str]:
        data, pixels = uploads.read(file), service.settings.pixels
        png, left = await asyncio.get_running_loop().run_in_executor(own, reduction, data, keep, pixels)
        patches = left[0]
        text = f"{left[-1]} of {patches} tokens are left at the end: {left[-1] / patches:.0%}."
        alt = "What tokens hold behind each block. Tokens left, block by block: " + ", ".join(map(str, left[1:]))
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        return notice(text), figure(source, alt, "The picture, then its tokens behind each block.", "Tokens by block")

    for event in (button.click, picture.upload, keep.release):
        event(
            reduce, [picture, keep], [notes, drawn], concurrency_limit=None, preprocess=False,
            api_visibility="private", trigger_mode="always_last",
        )  # fmt: skip


@cache
def _classifier() -> "Loaded":
    from vitalk.deploy.load import load_model

    return load_model("vitalk_eye")


def reduction(data: bytes, keep: object, pixels: int) -> tuple[bytes, list[int]]:
    """A PNG of the packaged classifier's tokens behind each block, and ``counts`` of them.

    data: of a picture file with ``pixels`` pixels at most. keep: as a browser sends it.
    Raises UserError for what is no picture or no keep rate.
    """
    if not (isinstance(keep, int | float) and 0 < keep <= 1):
        raise UserError("the keep rate must be above 0 and at most 1")
    import torch

    from vitalk.vision.drawing import draw_reduction
    from vitalk.vision.merging import tome

    picture, loaded = read_picture(data, pixels), _classifier()
    vit = loaded.model
    left = counts(vit.patch_embed.num_patches, len(vit.blocks), keep)
    trunk = tome(vit, [before - after for before, after in pairwise(left)]).eval()
    image, seen = torch.from_numpy(loaded.preprocess(picture)), loaded.preprocess.seen(picture)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.png"
        draw_reduction(trunk, image, seen, path)
        return path.read_bytes(), left


def counts(patches: int, blocks: int, keep: float) -> list[int]:
    """Patch tokens that enter each block, and that leave the last: as evenly fewer as merging pairs allows.

    No block can merge more than half of its tokens; where that makes more merges than wanted impossible, more stay.
    """
    wanted = max(1, round(keep * patches))
    left = [patches]
    for block in range(blocks):
        share = -(-(left[-1] - wanted) // (blocks - block))
        left.append(left[-1] - min(share, left[-1] // 2))
    return left
