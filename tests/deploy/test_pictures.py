"""Pictures of every kind come out as RGB; damaged ones as one sentence."""

import io
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from vitalk.deploy.pictures import open_picture, to_rgb
from vitalk.errors import UserError

RAMP = np.linspace(0, 255, 48 * 32).astype(np.uint8).reshape(32, 48)


def saved(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.gif", "a.tif"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_formats(tmp_path, name, mode):
    image = open_picture(saved(tmp_path / name, Image.fromarray(RAMP).convert(mode), quality=95))
    assert image.mode == "RGB" and image.size == (48, 32)
    assert np.abs(np.asarray(image)[..., 0].astype(int) - RAMP).max() <= 8


def test_palette_and_cmyk(tmp_path):
    red = Image.new("RGB", (8, 8), (250, 0, 0))
    for path, image in (("a.png", red.convert("P")), ("b.jpg", red.convert("CMYK")), ("c.tif", red.convert("CMYK"))):
        pixel = np.asarray(open_picture(saved(tmp_path / path, image)))[4, 4]
        assert np.abs(pixel.astype(int) - (250, 0, 0)).max() <= 6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_lies_on_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 4))
    path = saved(tmp_path / "a.png", image.convert("LA" if mode == "LA" else "RGBA"))
    pixels = np.asarray(open_picture(path) if mode != "PA" else to_rgb(image.convert("PA")))
    assert (pixels[:, :2] == 0).all() and (pixels[:, 2:] == 255).all()


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 2, 4))
    pixels = np.asarray(open_picture(saved(tmp_path / "a.png", image, transparency=0)))
    assert (pixels[0, 0] == (200, 100, 50)).all() and (pixels[0, 3] == 255).all()


def test_sixteen_bits_keep_their_greys(tmp_path):
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    for name in ("a.png", "a.tif"):
        assert (np.asarray(open_picture(saved(tmp_path / name, deep)))[..., 1] == RAMP).all()
    assert (np.asarray(to_rgb(Image.fromarray(RAMP.astype(np.int32))))[..., 0] == RAMP).all()


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turns_the_picture_upright(tmp_path, turn):
    upright = Image.new("RGB", (32, 16))
    upright.paste((255, 255, 255), (0, 0, 16, 8))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that undoes each orientation, inverted
    stored = upright if turn == 1 else upright.transpose(Image.Transpose(back[turn]))
    exif = Image.Exif()
    exif[0x0112] = turn
    image = open_picture(saved(tmp_path / "a.jpg", stored, exif=exif, quality=95))
    assert image.size == (32, 16)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(upright)).mean() < 3


def test_refuses_what_is_no_picture(tmp_path):
    jpeg = saved(tmp_path / "whole.jpg", Image.fromarray(RAMP), quality=95).read_bytes()
    png = saved(tmp_path / "whole.png", Image.fromarray(RAMP)).read_bytes()
    bad = {
        "text.jpg": (b"these are words\n" * 20, "is not a picture"),
        "empty.jpg": (b"", "is not a picture"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "cannot be read"),
        "cut.png": (png[: len(png) // 2], "cannot be read"),
        "head.png": (png[:20], "is not a picture|cannot be read"),
        "damaged.png": (png[:60] + bytes(40) + png[100:], "cannot be read"),
    }
    for name, (content, message) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            open_picture(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_refuses_missing_files_and_folders(tmp_path):
    saved(tmp_path / "kitten.png", Image.new("L", (2, 2)))
    with pytest.raises(UserError, match="Did you mean kitten"):
        open_picture(tmp_path / "kiten.png")
    with pytest.raises(UserError, match="no picture at"):
        open_picture(tmp_path / "nowhere" / "a.png")
    with pytest.raises(UserError, match="is a folder"):
        open_picture(tmp_path)


def test_refuses_floating_point(tmp_path):
    with pytest.raises(UserError, match="8 bits"):
        open_picture(saved(tmp_path / "a.tif", Image.new("F", (4, 4))))


HUGE = """
import resource, sys
from vitalk.deploy.pictures import open_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = open_picture(sys.argv[1])
print(image.size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def resized_header(jpeg, width, height):
    """The JPEG file with another size in its frame header; the missing data decode as grey."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + height.to_bytes(2) + width.to_bytes(2) + jpeg[at + 4 :]


def test_huge_jpeg_takes_little_memory(tmp_path):
    saved(tmp_path / "huge.jpg", Image.new("L", (16000, 6400), 90), quality=10)
    out = subprocess.run(
        [sys.executable, "-c", HUGE, str(tmp_path / "huge.jpg")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    ).stdout
    assert out.startswith("(8000, 3200)"), out
    assert int(out.split()[-1]) < 200


def test_other_huge_pictures_are_one_sentence(tmp_path):
    header = saved(tmp_path / "a.png", Image.new("1", (8, 8))).read_bytes()
    size = b"IHDR" + (20000).to_bytes(4) * 2 + header[24:29]
    (tmp_path / "huge.png").write_bytes(header[:12] + size + zlib.crc32(size).to_bytes(4) + header[33:])
    with pytest.raises(UserError, match="too many pixels"):
        open_picture(tmp_path / "huge.png")
    jpeg = io.BytesIO()
    Image.new("L", (64, 64)).save(jpeg, "JPEG", progressive=True)
    frame = jpeg.getvalue().replace(b"\xff\xc2", b"\xff\xc0", 1)
    large = resized_header(frame, 20000, 20000).replace(b"\xff\xc0", b"\xff\xc2", 1)
    (tmp_path / "huge.jpg").write_bytes(large)
    with pytest.raises(UserError, match="baseline JPEG"):
        open_picture(tmp_path / "huge.jpg")


def test_a_picture_of_one_pixel_is_refused(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    with pytest.raises(UserError, match=r"1 x 1 pixels, too few to see anything"):
        open_picture(tmp_path / "one.png")
