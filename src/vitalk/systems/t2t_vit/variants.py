"""The published sizes, registered with timm under the names of the official repository."""

from typing import Any

from timm.models import generate_default_cfgs, register_model

from vitalk.vision.variants import build, default_cfg

from .ablation import T2TViTDense, T2TViTGhost, T2TViTSE
from .model import T2TViT

RELEASES = "https://github.com/yitu-opensource/T2T-ViT/releases/download/main/"


def _cfg(file: str = "", **kwargs: Any) -> dict[str, Any]:
    url = RELEASES + file if file else ""
    return default_cfg(url=url, fixed_input_size=True, crop_pct=0.9, license="bsd-3-clause-clear", **kwargs)


default_cfgs = generate_default_cfgs(
    {
        "t2t_vit_7.yitu_in1k": _cfg("71.7_T2T_ViT_7.pth.tar"),
        "t2t_vit_10.yitu_in1k": _cfg("75.2_T2T_ViT_10.pth.tar"),
        "t2t_vit_12.yitu_in1k": _cfg("76.5_T2T_ViT_12.pth.tar"),
        "t2t_vit_14.yitu_in1k": _cfg("81.5_T2T_ViT_14.pth.tar"),
        "t2t_vit_14_384.yitu_in1k": _cfg("83.3_T2T_ViT_14.pth.tar", input_size=(3, 384, 384)),
        "t2t_vit_19.yitu_in1k": _cfg("81.9_T2T_ViT_19.pth.tar"),
        "t2t_vit_24.yitu_in1k": _cfg("82.3_T2T_ViT_24.pth.tar"),
        "t2t_vit_t_14.yitu_in1k": _cfg("81.7_T2T_ViTt_14.pth.tar"),
        "t2t_vit_t_19.yitu_in1k": _cfg("82.4_T2T_ViTt_19.pth.tar"),
        "t2t_vit_t_24.yitu_in1k": _cfg("82.6_T2T_ViTt_24.pth.tar"),
        "t2t_vit_c_14": _cfg(first_conv="patch_embed.stages.0"),
        "t2t_vit_14_wide": _cfg(),
        "t2t_vit_14_resnext": _cfg(),
        "t2t_vit_14_se": _cfg(),
        "t2t_vit_16_ghost": _cfg(),
        "t2t_vit_dense": _cfg(),
    }
)

LITE = {"embed_dim": 256, "num_heads": 4, "mlp_ratio": 2.0}
SMALL = {"embed_dim": 384, "num_heads": 6, "depth": 14}
MEDIUM = {"embed_dim": 448, "num_heads": 7, "depth": 19}
LARGE = {"embed_dim": 512, "num_heads": 8, "depth": 24}


def _create(name: str, pretrained: bool, size: dict, kwargs: dict, cls: type[T2TViT] = T2TViT) -> T2TViT:
    arguments = {**size, **kwargs}
    if pretrained and "embed_dim" in arguments:
        arguments.setdefault("qk_scale", arguments["embed_dim"] ** -0.5)
    return build(cls, name, pretrained, 3, **arguments)


@register_model
def t2t_vit_7(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-7: 4.3 M parameters, 1.1 GMACs, 71.7 % on ImageNet."""
    return _create("t2t_vit_7", pretrained, {**LITE, "depth": 7}, kwargs)


@register_model
def t2t_vit_10(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-10: 5.8 M parameters, 1.5 GMACs, 75.2 % on ImageNet."""
    return _create("t2t_vit_10", pretrained, {**LITE, "depth": 10}, kwargs)


@register_model
def t2t_vit_12(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-12: 6.9 M parameters, 1.8 GMACs, 76.5 % on ImageNet."""
    return _create("t2t_vit_12", pretrained, {**LITE, "depth": 12}, kwargs)


@register_model
def t2t_vit_14(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-14: 21.5 M parameters, 4.8 GMACs, 81.5 % on ImageNet."""
    return _create("t2t_vit_14", pretrained, SMALL, kwargs)


@register_model
def t2t_vit_14_384(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-14 on pictures of 384 pixels: 17.1 GMACs, 83.3 % on ImageNet."""
    return _create("t2t_vit_14_384", pretrained, SMALL, kwargs)


@register_model
def t2t_vit_19(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-19: 39.1 M parameters, 8.5 GMACs, 81.9 % on ImageNet."""
    return _create("t2t_vit_19", pretrained, MEDIUM, kwargs)


@register_model
def t2t_vit_24(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-24: 64.0 M parameters, 13.8 GMACs, 82.3 % on ImageNet."""
    return _create("t2t_vit_24", pretrained, LARGE, kwargs)


@register_model
def t2t_vit_t_14(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT_t-14, softmax token layers: 21.5 M parameters, 6.1 GMACs, 81.7 % on ImageNet."""
    return _create("t2t_vit_t_14", pretrained, {**SMALL, "tokenizer": "transformer"}, kwargs)


@register_model
def t2t_vit_t_19(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT_t-19, softmax token layers: 39.1 M parameters, 9.8 GMACs, 82.4 % on ImageNet."""
    return _create("t2t_vit_t_19", pretrained, {**MEDIUM, "tokenizer": "transformer"}, kwargs)


@register_model
def t2t_vit_t_24(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT_t-24, softmax token layers: 64.0 M parameters, 15.0 GMACs, 82.6 % on ImageNet."""
    return _create("t2t_vit_t_24", pretrained, {**LARGE, "tokenizer": "transformer"}, kwargs)


@register_model
def t2t_vit_c_14(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """The backbone of T2T-ViT-14 behind three convolutions: 80.8 % on ImageNet."""
    return _create("t2t_vit_c_14", pretrained, {**SMALL, "tokenizer": "conv"}, kwargs)


@register_model
def t2t_vit_14_wide(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-d768-4, shallow and wide (of 4 blocks in spite of its name): 25.0 M parameters, 78.8 % on ImageNet."""
    return _create("t2t_vit_14_wide", pretrained, {"embed_dim": 768, "num_heads": 12, "depth": 4}, kwargs)


@register_model
def t2t_vit_14_resnext(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-ResNeXt: the 14 blocks of T2T-ViT-14 with 32 heads each."""
    return _create("t2t_vit_14_resnext", pretrained, {**SMALL, "num_heads": 32}, kwargs)


@register_model
def t2t_vit_14_se(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-SE: squeeze-excite after every attention."""
    return _create("t2t_vit_14_se", pretrained, SMALL, kwargs, T2TViTSE)


@register_model
def t2t_vit_16_ghost(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-Ghost: 16 blocks, half of whose channels are multiples of the others."""
    return _create("t2t_vit_16_ghost", pretrained, {**SMALL, "depth": 16}, kwargs, T2TViTGhost)


@register_model
def t2t_vit_dense(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-Dense: four groups of dense blocks."""
    return _create("t2t_vit_dense", pretrained, {}, kwargs, T2TViTDense)
