"""The preprocessing of model files against timm's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitalk.deploy.load import timm_transform
from vitalk.deploy.preprocess import Preprocess
from vitalk.errors import UserError


def picture(width, height):
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 130),
    height=st.integers(1, 130),
    crop_pct=st.sampled_from([0.875, 0.9, 0.95, 1.0]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    mode=st.sampled_from(["center", "squash", "border"]),
)
def test_equals_timm(width, height, crop_pct, interpolation, mode):
    if mode == "border" and max(width, height) / min(width, height) > 40:
        return  # timm itself fails where the short side would vanish
    preprocess = Preprocess((48, 48), crop_pct, interpolation, crop_mode=mode)
    source = picture(width, height)
    np.testing.assert_allclose(preprocess(source), timm_transform(preprocess)(source).numpy(), atol=2e-6)


def test_equals_timm_for_sides_that_differ():
    preprocess = Preprocess((32, 64), 0.9)
    for size in ((100, 50), (50, 100), (70, 70)):
        source = picture(*size)
        np.testing.assert_allclose(preprocess(source), timm_transform(preprocess)(source).numpy(), atol=2e-6)


def test_survives_json_and_timm_configurations():
    cfg = {"input_size": (3, 32, 32), "interpolation": "lanczos", "crop_pct": 0.9, "mean": (0, 0, 0), "std": (1, 1, 1)}
    preprocess = Preprocess.from_timm_cfg(cfg)
    assert Preprocess.from_json(preprocess.to_json()) == preprocess
    assert preprocess.size == (32, 32) and preprocess.interpolation == "lanczos"


@pytest.mark.parametrize("options", [{"interpolation": "magic"}, {"crop_mode": "sideways"}])
def test_refuses_what_does_not_exist(options):
    with pytest.raises(UserError, match="choose"):
        Preprocess((32, 32), **options)
