"""The published sizes, registered with timm; all for pictures of 32 pixels.

``mask="none"`` makes each the plain host, ``mask="elementwise"`` the one with ELM. The authors release no weights. At
64 pixels they take patches twice as large (but 8 pixels for ``gmm_vit_base``), and ``splits=3`` for T2T.
"""

from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from vitalk.vision.variants import default_cfg

from .hosts import GMMCait, GMMPiT, GMMSwin
from .model import GMMViT
from .t2t import GMMT2T


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return default_cfg(
        32,
        fixed_input_size=True,
        crop_pct=1.0,
        mean=(0.4914, 0.4822, 0.4465),  # of CIFAR-10; the authors take each data set's own
        std=(0.2470, 0.2435, 0.2616),
        **{"first_conv": "patch_embed.proj", **kwargs},
    )


VITS: dict[str, dict[str, int]] = {
    "gmm_vit": {},
    "gmm_vit_d6": {"embed_dim": 252, "depth": 6},
    "gmm_vit_d15": {"embed_dim": 144, "depth": 15},
    "gmm_vit_d30": {"embed_dim": 72, "depth": 30},
    "gmm_vit_d30_108": {"embed_dim": 108, "depth": 30},
    "gmm_vit_d30_192": {"embed_dim": 192, "depth": 30},
    "gmm_vit_d60": {"embed_dim": 72, "depth": 60},
    "gmm_vit_base": {"embed_dim": 256, "depth": 8, "num_heads": 4, "patch_size": 2},
    "gmm_vit_heat": {"embed_dim": 192, "depth": 8, "num_heads": 6, "patch_size": 2},
}
default_cfgs = generate_default_cfgs(
    {name: _cfg() for name in VITS}
    | {name: _cfg() for name in ("gmm_cait", "gmm_cait_tiny", "gmm_pit")}
    | {"gmm_swin": _cfg(classifier="head.fc"), "gmm_t2t": _cfg(first_conv=None)}
)


def _create(
    cls: Callable[..., nn.Module], name: str, pretrained: bool, features: dict[str, Any], kwargs: dict[str, Any]
) -> Any:
    taps = {"out_indices": kwargs.pop("out_indices", 3), **features}
    return build_model_with_cfg(
        cls, name, pretrained, pretrained_filter_fn=cls.checkpoint_filter_fn, feature_cfg=taps, **kwargs
    )


def _vit(name: str, pretrained: bool, kwargs: dict[str, Any]) -> GMMViT:
    return _create(GMMViT, name, pretrained, {"feature_cls": "getter"}, {**VITS[name], **kwargs})


@register_model
def gmm_vit(pretrained: bool = False, **kwargs: Any) -> GMMViT:
    """The paper's ViT, 192 x 9: 2.7 M parameters, 95.06 % on CIFAR-10 (93.65 % plain)."""
    return _vit("gmm_vit", pretrained, kwargs)


@register_model
def gmm_vit_d6(pretrained: bool = False, **kwargs: Any) -> GMMViT:
    """252 x 6."""
    return _vit("gmm_vit_d6", pretrained, kwargs)


@register_model
def gmm_vit_d15(pretrained: bool = False, **kwargs: Any) -> GMMViT:
    """144 x 15."""
    return _vit("gmm_vit_d15", pretrained, kwargs)


@register_model
def gmm_vit_d30(pretrained: bool = False, **kwargs: Any) -> GMMViT:
    """72 x 30."""
    return _vit("gmm_vit_d30", pretrained, kwargs)


@register_model
def gmm_vit_d30_108(pretrained: bool = False, **kwargs: Any) -> GMMViT:
    """108 x 30, ``vit_d30*`` of the authors."""
    return _vit("gmm_vit_d30_108", pretrained, kwargs)


@register_model
def gmm_vit_d30_192(pretrained: bool = False, **kwargs: Any) -> GMMViT:
    """192 x 30, ``vit_d30**`` of the authors."""
    return _vit("gmm_vit_d30_192", pretrained, kwargs)


@register_model
def gmm_vit_d60(pretrained: bool = False, **kwargs: Any) -> GMMViT:
    """72 x 60."""
    return _vit("gmm_vit_d60", pretrained, kwargs)


@register_model
def gmm_vit_base(pretrained: bool = False, **kwargs: Any) -> GMMViT:
    """256 x 8 with 4 heads on 16 x 16 patches."""
    return _vit("gmm_vit_base", pretrained, kwargs)


@register_model
def gmm_vit_heat(pretrained: bool = False, **kwargs: Any) -> GMMViT:
    """192 x 8 with 6 heads on 16 x 16 patches: the one whose masks the paper draws."""
    return _vit("gmm_vit_heat", pretrained, kwargs)


@register_model
def gmm_swin(pretrained: bool = False, **kwargs: Any) -> GMMSwin:
    """Swin 96 x (2, 6, 4): 7.1 M parameters, 95.39 % on CIFAR-10 (95.26 % plain)."""
    return _create(GMMSwin, "gmm_swin", pretrained, {"flatten_sequential": True}, kwargs)


@register_model
def gmm_pit(pretrained: bool = False, **kwargs: Any) -> GMMPiT:
    """PiT 96 x (2, 6, 4): 7.0 M parameters, 94.41 % on CIFAR-10 (93.68 % plain)."""
    return _create(GMMPiT, "gmm_pit", pretrained, {"feature_cls": "hook"}, kwargs)


@register_model
def gmm_cait(pretrained: bool = False, **kwargs: Any) -> GMMCait:
    """CaiT 192 x 24 + 2: 9.0 M parameters, the default of the authors' code."""
    return _create(GMMCait, "gmm_cait", pretrained, {"feature_cls": "getter"}, kwargs)


@register_model
def gmm_cait_tiny(pretrained: bool = False, **kwargs: Any) -> GMMCait:
    """CaiT 108 x 24 + 2, the paper's by its size: 5.1 M parameters, 95.15 % on CIFAR-10 (94.79 % plain)."""
    return _create(GMMCait, "gmm_cait_tiny", pretrained, {"feature_cls": "getter"}, {"embed_dim": 108, **kwargs})


@register_model
def gmm_t2t(pretrained: bool = False, **kwargs: Any) -> GMMT2T:
    """T2T 256 x 12: 6.5 M parameters, 96.16 % on CIFAR-10 (95.32 % plain)."""
    return _create(GMMT2T, "gmm_t2t", pretrained, {"feature_cls": "getter"}, kwargs)
