"""Picture files of every common kind, opened as a person would see them."""

import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from vitalk.errors import UserError

MOST_PIXELS = 100_000_000  # decoded, 300 MB; JPEGs above are decoded at a fraction of their size instead
DRAFT_SIDE = 2048


def open_picture(path: str | Path) -> Image.Image:
    """A JPEG, PNG, WebP … file as RGB picture: upright (EXIF), transparency on white, 16 bits scaled to 8.

    A JPEG of more than 100 million pixels is decoded at half, a quarter or an eighth of its size, which a
    classifier cannot tell; other formats of that size are refused. Raises UserError for whatever is no picture.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no picture at {path}; check the name")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the pictures in it")
    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return _decode(picture, path)
    except Image.DecompressionBombError:
        return _decode_huge(path)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = "it is no picture" if isinstance(error, UnidentifiedImageError) else f"it is damaged: {error}"
        raise UserError(f"{path} cannot be read ({reason}); give a JPEG, PNG or WebP file") from None


def _decode_huge(path: Path) -> Image.Image:
    """Pillow refuses to open very large pictures; its own limit is lifted for the length of this call."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as picture:
            return _decode(picture, path)
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read (it is damaged: {error}); give a JPEG, PNG or WebP file") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decode(picture: Image.Image, path: Path) -> Image.Image:
    pixels = picture.width * picture.height
    if pixels > MOST_PIXELS:
        shape = f"{picture.width} x {picture.height}"
        picture.draft("RGB", (DRAFT_SIDE, DRAFT_SIDE))
        if picture.width * picture.height > MOST_PIXELS:
            raise UserError(f"{path} is too large ({shape}); scale it below 100 million pixels first")
    return _on_white(ImageOps.exif_transpose(picture))


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith(("I;16", "I")):
        picture = picture.point(lambda v: v / 256).convert("L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        canvas = Image.new("RGBA", picture.size, "white")
        canvas.alpha_composite(picture)
        picture = canvas
    return picture.convert("RGB")
