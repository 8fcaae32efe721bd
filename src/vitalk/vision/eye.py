"""The embedded classifier: a small convolutional stem on a plain ViT trunk, for 32 x 32 pictures."""

from importlib import resources
from typing import Any

from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()]


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a skip: [batch, width, height, width] -> the same shape."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(*_conv(width, width, 1), *_conv(width, width, 1)[:-1])
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """x + body(x), through the activation."""
        return self.act(x + self.body(x))


class ConvStem(nn.Module):
    """Patch embedding by convolutions (the idea: arXiv 2106.14881; the layout is ours), four pixels a token.

    images [batch, channels, height, width] -> tokens [batch, height / 4, width / 4, dim].
    """

    def __init__(
        self,
        img_size: int = 32,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 192,
        width: int = 32,
        **_: Any,
    ):
        super().__init__()
        self.img_size, self.patch_size = (img_size, img_size), (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.layers = nn.Sequential(
            *_conv(in_chans, width, 1), *_conv(width, 3 * width, 2), Residual(3 * width),
            *_conv(3 * width, embed_dim, 2), Residual(embed_dim),
        )  # fmt: skip

    def feat_ratio(self) -> tuple[int, int]:
        """Pixels a token in height and width."""
        return self.patch_size

    def dynamic_feat_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The token grid of a picture of ``size`` pixels."""
        return size[0] // self.patch_size[0], size[1] // self.patch_size[1]

    def forward(self, images: Tensor) -> Tensor:
        """The token grid, channels last, which the trunk flattens."""
        return self.layers(images).permute(0, 2, 3, 1)


@register_model
def vitalk_eye(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """The classifier that ships with the package: four blocks of width 192, 64 tokens, 2.5 M parameters.

    Its weights are package data; a head for other classes, or another size, starts anew.
    """
    kwargs.pop("pretrained_cfg", None), kwargs.pop("pretrained_cfg_overlay", None), kwargs.pop("cache_dir", None)
    defaults = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 4, "num_heads": 3, "mlp_ratio": 3.0}
    model = VisionTransformer(embed_layer=ConvStem, dynamic_img_size=True, **{**defaults, "num_classes": 10, **kwargs})
    model.pretrained_cfg = model.default_cfg = {
        "input_size": (3, 32, 32), "crop_pct": 1.0, "interpolation": "bicubic", "crop_mode": "center",
        "mean": (0.491, 0.482, 0.447), "std": (0.247, 0.244, 0.262), "num_classes": model.num_classes,
        "classifier": "head", "first_conv": "patch_embed.layers.0", "architecture": "vitalk_eye",
    }  # fmt: skip
    if pretrained:
        from .classifier import load_weights

        load_weights(model, str(resources.files("vitalk") / "assets" / "eye.safetensors"))
    return model
