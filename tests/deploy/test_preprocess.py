"""The torch-free preprocessing against timm's own evaluation transform."""

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform, resolve_data_config

from vitalk.deploy.preprocess import Preprocess
from vitalk.errors import UserError


def picture(width, height, seed=0):
    pixels = np.random.default_rng((seed, width, height)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def timm_transform(cfg):
    return create_transform(**resolve_data_config(pretrained_cfg=cfg), is_training=False)


CONFIGS = st.fixed_dictionaries(
    {
        "input_size": st.one_of(
            st.sampled_from([(3, 32, 32), (3, 48, 32), (3, 31, 57)]),
            st.integers(8, 64).map(lambda n: (3, n, n)),
        ),
        "crop_pct": st.sampled_from([0.875, 0.9, 0.95, 1.0, 1.25]),
        "crop_mode": st.sampled_from(["center", "squash", "border"]),
        "interpolation": st.sampled_from(["bilinear", "bicubic", "lanczos", "nearest"]),
        "mean": st.sampled_from([(0.485, 0.456, 0.406), (0.5, 0.5, 0.5)]),
        "std": st.just((0.229, 0.224, 0.225)),
    }
)


@settings(deadline=None, max_examples=150)
@given(CONFIGS, st.integers(2, 90), st.integers(2, 90))
@example({"input_size": (3, 32, 32), "crop_pct": 0.9, "crop_mode": "center"}, 32, 32)
@example({"input_size": (3, 32, 32), "crop_pct": 1.0}, 33, 97)
@example({"input_size": (3, 224, 224)}, 500, 333)
def test_equals_timm(cfg, width, height):
    assume(max(width, height) < min(width, height) * min(cfg["input_size"][1:]) / 2)  # timm fails on thinner lines
    image = picture(width, height)
    wanted = timm_transform(cfg)(image).numpy()
    got = Preprocess.from_timm_cfg(cfg)(image)
    assert got.shape == wanted.shape and got.dtype == np.float32
    assert np.abs(got - wanted).max() <= 1e-6


def test_empty_configuration_is_timms_default():
    image = picture(301, 257)
    assert (
        np.abs(Preprocess.from_timm_cfg({})(image) - timm_transform({"input_size": None})(image).numpy()).max() <= 1e-6
    )


@settings(deadline=None, max_examples=50)
@given(CONFIGS)
def test_survives_json(cfg):
    whole = Preprocess.from_timm_cfg(cfg)
    assert Preprocess.from_json(whole.to_json()) == whole


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000)])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_sees_pictures_of_any_shape(size, mode):
    assert np.isfinite(Preprocess(crop_mode=mode)(picture(*size))).all()


def test_a_window_of_the_fitted_picture_is_its_middle(monkeypatch):
    whole, image = Preprocess(size=(32, 32)), picture(400, 45)
    wanted = whole(image)
    monkeypatch.setattr("vitalk.deploy.preprocess.LARGEST_FIT", 1)
    assert np.abs(whole(image) - wanted).max() <= 1.01 / 255 / 0.224  # one grey level at the most


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interpolation": "bicubik"}, "Did you mean bicubic"),
        ({"crop_mode": "centre"}, "Did you mean center"),
        ({"crop_pct": 0.0}, "crop_pct"),
        ({"crop_pct": float("nan")}, "crop_pct"),
        ({"size": (0, 32)}, "input size"),
        ({"std": (0.0, 1.0, 1.0)}, "std"),
        ({"mean": (float("nan"), 1.0, 1.0)}, "mean"),
        ({"mean": (0.5,)}, "mean"),
    ],
)
def test_refuses_values_that_mean_nothing(values, message):
    with pytest.raises(UserError, match=message):
        Preprocess(**values)


def test_refuses_models_that_do_not_take_rgb():
    with pytest.raises(UserError, match="takes 1"):
        Preprocess.from_timm_cfg({"input_size": (1, 28, 28)})


@pytest.mark.parametrize("text", ["", "[]", "3", '{"colour": 1}', "not json", '{"size": 3}'])
def test_refuses_text_that_is_no_preprocessing(text):
    with pytest.raises(UserError):
        Preprocess.from_json(text)
