"""The pictures show the tokens that the model has."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from vitalk.vision.drawing import BORDER, DROPPED, draw_reduction, enlarged, paint
from vitalk.vision.merging import tome

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}


def test_tokens_of_one_patch_show_it_and_others_their_mean():
    canvas = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    source = np.zeros((3, 4), np.float32)
    source[1, 0], source[2, 1], source[2, 3] = 1, 0.5, 0.5  # a class token, one patch, two in one; the third is gone
    drawn = paint(canvas, source, (2, 2))
    assert (drawn[:4, :4] == canvas[:4, :4]).all()
    mean = canvas[:, 4:].reshape(-1, 3).mean(0).round()
    assert (drawn[1:, 5:] == mean).all() and (drawn[5:, 1:4] == DROPPED).all()
    assert (drawn[:, 4] == BORDER).all() and (drawn[4, :4] == BORDER).all() and (drawn[4, 5:] == mean).all()


def test_a_row_of_panels_one_for_each_change(tmp_path):
    trunk = tome(VisionTransformer(**SMALL), [4, 0, 3]).train()
    draw_reduction(trunk, torch.randn(3, 32, 32), Image.new("RGB", (32, 32), "red"), tmp_path / "a.png")
    sheet = Image.open(tmp_path / "a.png")
    assert sheet.width == 3 * 224 + 2 * 8 and not trunk.trace and trunk.training


@settings(deadline=None, max_examples=20)
@given(width=st.integers(10, 300), height=st.integers(10, 300), rows=st.integers(1, 14), columns=st.integers(1, 14))
def test_canvases_divide_into_the_grid(width, height, rows, columns):
    canvas = enlarged(Image.new("RGB", (width, height)), (rows, columns))
    assert canvas.shape[0] % rows == 0 and canvas.shape[1] % columns == 0
