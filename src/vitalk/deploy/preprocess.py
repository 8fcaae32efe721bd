"""What happens to a picture before the model sees it: timm's evaluation transform, without torch."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from vitalk.errors import UserError, nearest

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
CROP_MODES = ("center", "squash", "border")
LARGEST_FIT = 2**26  # pixels: pictures that would be fitted to more (200 MB) are never fitted whole


@dataclass(frozen=True)
class Preprocess:
    """RGB picture -> normalised float32 [3, height, width], as ``timm.data.create_transform`` evaluates.

    size: (height, width) of the input, pixels. crop_pct: share of the resized picture's edge that the crop keeps.
    crop_mode: "center" fits the short edge and crops, "squash" resizes both edges, "border" fits the long edge
    and pads with ``mean``. mean, std: of the three channels, for pixels in [0, 1].

    Raises UserError for values that mean nothing.
    """

    size: tuple[int, int] = (224, 224)
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("interpolation", self.interpolation, [*INTERPOLATIONS]),
            ("crop mode", self.crop_mode, [*CROP_MODES]),
        ):
            if value not in known:
                raise UserError(
                    f"there is no {name} {value!r}; use one of {', '.join(known)}.{nearest(str(value), known)}"
                )
        if len(self.size) != 2 or min(self.size) < 1:
            raise UserError(f"the input size must be two positive numbers of pixels, got {self.size}")
        if not 0 < self.crop_pct < math.inf:
            raise UserError(f"crop_pct must be above 0, got {self.crop_pct}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(math.isfinite(m) for m in self.mean):
            raise UserError(f"mean and std need three numbers each, got {self.mean} and {self.std}")
        if not all(0 < s < math.inf for s in self.std):
            raise UserError(f"every std must be above 0, got {self.std}")

    @classmethod
    def from_timm_cfg(cls, cfg: dict[str, Any]) -> Self:
        """From a timm ``pretrained_cfg`` or data configuration; what it leaves open is timm's default.

        Raises UserError for models whose input does not have three channels.
        """
        channels, height, width = cfg.get("input_size") or (3, 224, 224)
        if channels != 3:
            raise UserError(
                f"pictures have 3 channels, this model takes {channels}; only models of RGB pictures can see"
            )
        given = {k: cfg[k] for k in ("crop_pct", "interpolation", "crop_mode") if cfg.get(k)}
        given.update({k: tuple(float(v) for v in cfg[k]) for k in ("mean", "std") if cfg.get(k)})
        return cls(size=(int(height), int(width)), **given)

    def to_json(self) -> str:
        """As JSON text, which an ONNX file carries."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of ``to_json``; UserError for any other text."""
        try:
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
            return cls(**values)
        except UserError:
            raise
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"the preprocessing {text[:60]!r} cannot be read ({error}); export the model again"
            ) from None

    @property
    def resize(self) -> tuple[int, int]:
        """(height, width) in pixels to which the picture is fitted before the crop."""
        height, width = self.size
        return max(math.floor(height / self.crop_pct), 1), max(math.floor(width / self.crop_pct), 1)

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """Picture of any size -> float32 [3, height, width]."""
        pixels = np.asarray(self.seen(picture), np.float32).transpose(2, 0, 1) / np.float32(255)
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (self.mean, self.std))
        return np.ascontiguousarray((pixels - mean) / std)

    def seen(self, picture: Image.Image) -> Image.Image:
        """What the model sees of a picture: resized and cropped to ``size``, in RGB."""
        picture = picture.convert("RGB")
        fitted = self._fitted(picture.height, picture.width)
        if math.prod(fitted) > LARGEST_FIT:
            picture = self._window(picture, fitted)
        elif fitted != (picture.height, picture.width):
            picture = picture.resize(fitted[::-1], INTERPOLATIONS[self.interpolation])
        return self._crop(picture)

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        target = self.resize
        if self.crop_mode == "squash":
            return target
        if self.crop_mode == "center" and target[0] == target[1]:
            short, edge = min(height, width), target[0]
            # the long edge is rounded down, as torchvision does: a pixel more would shift every crop
            return (edge, int(edge * width / short)) if height <= width else (int(edge * height / short), edge)
        ratios = height / target[0], width / target[1]
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return max(round(height / ratio), 1), max(round(width / ratio), 1)

    def _window(self, picture: Image.Image, fitted: tuple[int, int]) -> Image.Image:
        """The middle of the fitted picture alone: a line of 1 x 20000 pixels, fitted whole, would take gigabytes."""
        sizes = [min(f, s) for f, s in zip(fitted, self.size, strict=True)]
        starts = [round((f - s) / 2) for f, s in zip(fitted, sizes, strict=True)]
        scales = picture.height / fitted[0], picture.width / fitted[1]
        (top, bottom), (left, right) = (
            (a * scale, (a + s) * scale) for a, s, scale in zip(starts, sizes, scales, strict=True)
        )
        box = left, top, min(right, picture.width), min(bottom, picture.height)
        return picture.resize((sizes[1], sizes[0]), INTERPOLATIONS[self.interpolation], box=box)

    def _crop(self, picture: Image.Image) -> Image.Image:
        (width, height), (rows, columns) = picture.size, self.size
        missing = max(columns - width, 0), max(rows - height, 0)
        if any(missing):
            fill = tuple(round(255 * m) for m in self.mean) if self.crop_mode == "border" else (0, 0, 0)
            padded = Image.new("RGB", (width + missing[0], height + missing[1]), fill)
            padded.paste(picture, (missing[0] // 2, missing[1] // 2))
            picture, (width, height) = padded, padded.size
        top, left = round((height - rows) / 2), round((width - columns) / 2)
        return picture.crop((left, top, left + columns, top + rows))
