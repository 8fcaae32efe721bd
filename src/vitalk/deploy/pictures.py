"""Pictures from files, whatever they are, as RGB."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin

from vitalk.errors import UserError, nearest

Source = Path | io.BytesIO
SMALLEST = 2  # pixels a side
REDUCED = (2048, 2048)  # pixels that a picture beyond the limit keeps at least


def open_picture(path: str | Path) -> Image.Image:
    """The picture in a file as RGB, turned upright as its EXIF tells; transparency lies on white.

    16-bit grey is scaled to 8 bits; of an animation the first frame is taken. Above Pillow's limit of 89 million
    pixels JPEGs are decoded at a half, a quarter or an eighth of their size (so a picture of 20000 x 20000 pixels
    takes some 20 MB); other formats, and progressive JPEGs, must be unpacked whole and are refused.

    Raises UserError for files that are missing, too large, too small, damaged, or no pictures.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a picture")
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"there is no picture at {path}.{nearest(path.name, beside)}")
    return _read(path, str(path), None)


def read_picture(data: bytes, pixels: int | None = None) -> Image.Image:
    """The picture in the bytes of a file, as ``open_picture``; pixels: the most that it may have, told by its header.

    Raises UserError as ``open_picture``, and for larger pictures before anything is unpacked.
    """
    return _read(io.BytesIO(data), "the picture", pixels)


def _read(source: Source, name: str, pixels: int | None) -> Image.Image:
    try:
        with _opened(source, name, pixels) as picture:
            if min(picture.size) < SMALLEST:
                size = f"{picture.width} x {picture.height}"
                raise UserError(f"{name} has {size} pixels, too few to see anything; give at least {SMALLEST} a side")
            return to_rgb(picture)
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError(f"{name} is not a picture (or of a kind that is not known); save it as JPEG or PNG") from None
    except Exception as error:  # decoders raise whatever damage leads them to
        raise UserError(f"{name} cannot be read ({_sentence(error)}); replace or re-save it") from None


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, upright, on white.

    Raises UserError for floating point pictures, whose white is not known.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        raise UserError("a picture of floating point numbers has no known white; save it with 8 bits a channel")
    if picture.mode.startswith("I"):
        return _eight_bits(picture).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    levels = np.asarray(picture).astype(np.int64)
    deep = picture.mode != "I" or levels.max() > 255  # "I" may hold 8 or 16 bits
    return Image.fromarray((levels >> 8 if deep else levels).clip(0, 255).astype(np.uint8))


def _opened(source: Source, name: str, pixels: int | None) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(source)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        if pixels is not None:
            raise UserError(f"{name} has more than {pixels / 1e6:g} million pixels; make it smaller") from None
        return _reduced(source, name)
    if pixels is not None and picture.width * picture.height > pixels:
        picture.close()
        raise UserError(f"{name} has more than {pixels / 1e6:g} million pixels; make it smaller")
    return picture


def _reduced(source: Source, name: str) -> Image.Image:
    remedy = f"{name} has too many pixels to unpack; save it as baseline JPEG or below 89 million pixels"
    try:
        picture = JpegImagePlugin.JpegImageFile(source)  # Image.open refuses by the size before any reduction
    except SyntaxError:
        raise UserError(remedy) from None
    picture.draft("RGB", REDUCED)
    if "progressive" in picture.info or picture.width * picture.height > Image.MAX_IMAGE_PIXELS:
        picture.close()
        raise UserError(remedy)
    return picture


def _sentence(error: Exception) -> str:
    return str(error).strip().rstrip(".").splitlines()[0] if str(error).strip() else type(error).__name__
