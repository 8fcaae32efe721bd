"""From a picture to what a classifier takes, without torch: the numbers of timm's evaluation transform."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from vitalk.errors import UserError

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


@dataclass(frozen=True)
class Preprocess:
    """Resize (antialiased, as Pillow does), crop, scale to [0, 1] and normalise.

    size: height and width of the result, pixels. crop_pct: share of the resized picture that the crop keeps.
    crop_mode: "center" resizes the short side and crops, "squash" resizes both sides and crops, "border" resizes
    the long side and pads with the mean colour. mean, std: by channel.
    Raises UserError for interpolations and crop modes that do not exist.
    """

    size: tuple[int, int]
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.interpolation not in FILTERS:
            raise UserError(f"interpolation {self.interpolation} is unknown; choose {', '.join(FILTERS)}")
        if self.crop_mode not in ("center", "squash", "border"):
            raise UserError(f"crop mode {self.crop_mode} is unknown; choose center, squash or border")

    @classmethod
    def from_timm_cfg(cls, cfg: dict[str, Any]) -> Self:
        """The preprocessing that a timm pretrained_cfg describes."""
        interpolation = cfg.get("interpolation") or "bicubic"
        return cls(
            size=tuple(cfg.get("input_size", (3, 224, 224))[-2:]),
            crop_pct=float(cfg.get("crop_pct") or 0.875),
            interpolation="bilinear" if interpolation == "random" else interpolation,
            mean=tuple(cfg.get("mean") or cls.mean),
            std=tuple(cfg.get("std") or cls.std),
            crop_mode=cfg.get("crop_mode") or "center",
        )

    def to_json(self) -> str:
        """As JSON, to travel in a model file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What ``to_json`` wrote."""
        fields = json.loads(text)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """An RGB picture of any size -> float32 [3, height, width]."""
        pixels = np.asarray(self.cropped(picture), dtype=np.float32) / np.float32(255)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))

    def cropped(self, picture: Image.Image) -> Image.Image:
        """The resized and cropped picture, of exactly ``size``."""
        height, width = self.size
        wanted = math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)
        if self.crop_mode == "squash":
            picture = picture.resize((wanted[1], wanted[0]), FILTERS[self.interpolation])
        elif self.crop_mode == "border":
            share = max(picture.height / wanted[0], picture.width / wanted[1])
            shape = round(picture.width / share), round(picture.height / share)
            picture = picture.resize((max(shape[0], 1), max(shape[1], 1)), FILTERS[self.interpolation])
        else:
            picture = picture.resize(self._short_side(picture, wanted), FILTERS[self.interpolation])
        left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
        if left >= 0 and top >= 0:
            return picture.crop((left, top, left + width, top + height))
        return self._padded(picture)

    def _short_side(self, picture: Image.Image, wanted: tuple[int, int]) -> tuple[int, int]:
        if wanted[0] != wanted[1]:  # timm keeps the ratio so that the picture covers both sides
            share = min(picture.height / wanted[0], picture.width / wanted[1])
            return round(picture.width / share), round(picture.height / share)
        short, long = sorted((picture.width, picture.height))
        longer = int(wanted[0] * long / short)
        return (wanted[0], longer) if picture.width <= picture.height else (longer, wanted[0])

    def _padded(self, picture: Image.Image) -> Image.Image:
        height, width = self.size
        fill = (0, 0, 0) if self.crop_mode != "border" else tuple(round(255 * m) for m in self.mean)
        canvas = Image.new("RGB", (max(width, picture.width), max(height, picture.height)), fill)
        canvas.paste(picture, ((canvas.width - picture.width) // 2, (canvas.height - picture.height) // 2))
        left, top = round((canvas.width - width) / 2), round((canvas.height - height) / 2)
        return canvas.crop((left, top, left + width, top + height))
