"""Picture files, good and bad."""

import io

import numpy as np
import pytest
from PIL import Image

from vitalk.deploy import pictures
from vitalk.deploy.pictures import open_picture
from vitalk.errors import UserError


def colours():
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15, 0], pixels[:, 15:, 2] = 255, 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp"])
def test_formats(tmp_path, kind):
    colours().save(tmp_path / f"a.{kind}", quality=95)
    seen = np.asarray(open_picture(tmp_path / f"a.{kind}")).astype(int)
    assert seen.shape == (20, 30, 3) and abs(seen[10, 3] - [255, 0, 0]).max() < 12


def test_modes_become_rgb(tmp_path):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert (np.asarray(open_picture(tmp_path / "clear.png")) == 255).all(), "transparent is white"
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    assert (np.asarray(open_picture(tmp_path / "grey.png")) == 77).all()
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert abs(np.asarray(open_picture(tmp_path / "deep.png")).astype(int) - 128).max() <= 1
    colours().convert("P").save(tmp_path / "palette.png")
    colours().convert("CMYK").save(tmp_path / "cmyk.jpg")
    for name in ("palette.png", "cmyk.jpg"):
        assert open_picture(tmp_path / name).mode == "RGB"


def test_exif_turns_the_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    colours().save(tmp_path / "turned.jpg", exif=exif, quality=95)
    turned = open_picture(tmp_path / "turned.jpg")
    assert turned.size == (20, 30)
    assert np.asarray(turned)[3, 10, 0] > 200, "left becomes top"


def test_bad_files_get_a_sentence(tmp_path):
    (tmp_path / "text.jpg").write_text("I am not a picture")
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:300])
    cases = {"none.jpg": "no picture at", "text.jpg": "no picture", "cut.jpg": "damaged", ".": "folder"}
    for name, words in cases.items():
        with pytest.raises(UserError, match=words):
            open_picture(tmp_path / name)


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    assert open_picture(tmp_path / "one.png").size == (1, 1)


def test_huge_pictures_are_reduced_or_refused(tmp_path):
    side = 20_000
    Image.new("L", (side, side), 100).save(tmp_path / "huge.jpg", quality=30)
    seen = open_picture(tmp_path / "huge.jpg")
    assert max(seen.size) == side // 8
    assert max(abs(value - 100) for value in seen.getpixel((5, 5))) <= 2, "JPEG is lossy"
    Image.new("1", (side, side)).save(tmp_path / "huge.png")
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(UserError, match="20000 x 20000"):
        open_picture(tmp_path / "huge.png")
    assert limit == Image.MAX_IMAGE_PIXELS and side**2 > pictures.MOST_PIXELS
