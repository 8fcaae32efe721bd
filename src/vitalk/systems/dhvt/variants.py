"""The published sizes, registered with timm under the names of the official repository."""

from typing import Any

from timm.models import generate_default_cfgs, register_model

from vitalk.vision.variants import build, default_cfg

from .model import DHVT, DHVTWithMlp

CIFAR = default_cfg(32, 100, crop_pct=1.0, license="apache-2.0")
DOMAIN, IMAGENET = default_cfg(224, 345, license="apache-2.0"), default_cfg(license="apache-2.0")
default_cfgs = generate_default_cfgs(
    {
        "dhvt_tiny_cifar_patch4": CIFAR,
        "dhvt_small_cifar_patch4": CIFAR,
        "dhvt_tiny_cifar_patch2": CIFAR,
        "dhvt_small_cifar_patch2": CIFAR,
        "dhvt_tiny_domain_patch16": DOMAIN,
        "dhvt_small_domain_patch16": DOMAIN,
        "dhvt_tiny_imagenet_patch16": IMAGENET,
        "dhvt_small_imagenet_patch16": IMAGENET,
    }
)


def _create(name: str, pretrained: bool, size: dict[str, Any], kwargs: dict[str, Any]) -> DHVTWithMlp:
    side = default_cfgs[name].default.input_size[-1]
    arguments = {"img_size": side, "depth": 12, **size, **kwargs}
    cls = DHVT if arguments.pop("daff", True) else DHVTWithMlp
    return build(cls, name, pretrained, 3, **arguments)


@register_model
def dhvt_tiny_cifar_patch4(pretrained: bool = False, **kwargs: Any) -> DHVTWithMlp:
    """DHVT-T for CIFAR, patches of 4 pixels: 6.0 M parameters, 0.4 GMACs, 80.9 % on CIFAR-100."""
    return _create("dhvt_tiny_cifar_patch4", pretrained, {"patch_size": 4, "embed_dim": 192, "num_heads": 4}, kwargs)


@register_model
def dhvt_small_cifar_patch4(pretrained: bool = False, **kwargs: Any) -> DHVTWithMlp:
    """DHVT-S for CIFAR, patches of 4 pixels: 23.4 M parameters, 1.5 GMACs, 82.9 % on CIFAR-100."""
    return _create("dhvt_small_cifar_patch4", pretrained, {"patch_size": 4, "embed_dim": 384, "num_heads": 8}, kwargs)


@register_model
def dhvt_tiny_cifar_patch2(pretrained: bool = False, **kwargs: Any) -> DHVTWithMlp:
    """DHVT-T for CIFAR, patches of 2 pixels: 5.8 M parameters, 1.7 GMACs (1.4 in the paper), 83.5 % on CIFAR-100."""
    return _create("dhvt_tiny_cifar_patch2", pretrained, {"patch_size": 2, "embed_dim": 192, "num_heads": 4}, kwargs)


@register_model
def dhvt_small_cifar_patch2(pretrained: bool = False, **kwargs: Any) -> DHVTWithMlp:
    """DHVT-S for CIFAR, patches of 2 pixels: 22.8 M parameters, 6.2 GMACs (5.6 in the paper), 85.7 % on CIFAR-100."""
    return _create("dhvt_small_cifar_patch2", pretrained, {"patch_size": 2, "embed_dim": 384, "num_heads": 8}, kwargs)


@register_model
def dhvt_tiny_domain_patch16(pretrained: bool = False, **kwargs: Any) -> DHVTWithMlp:
    """DHVT-T for DomainNet: 6.1 M parameters, 71.7 % on Clipart, 63.3 % on Painting, 66.6 % on Sketch."""
    return _create("dhvt_tiny_domain_patch16", pretrained, {"patch_size": 16, "embed_dim": 192, "num_heads": 4}, kwargs)


@register_model
def dhvt_small_domain_patch16(pretrained: bool = False, **kwargs: Any) -> DHVTWithMlp:
    """DHVT-S for DomainNet: 23.8 M parameters, 73.9 % on Clipart, 66.1 % on Painting, 68.7 % on Sketch."""
    size = {"patch_size": 16, "embed_dim": 384, "num_heads": 6}
    return _create("dhvt_small_domain_patch16", pretrained, size, kwargs)


@register_model
def dhvt_tiny_imagenet_patch16(pretrained: bool = False, **kwargs: Any) -> DHVTWithMlp:
    """DHVT-T for ImageNet: 6.3 M parameters, 1.4 GMACs, 76.5 % (77.6 % in the repository)."""
    size = {"patch_size": 16, "embed_dim": 192, "num_heads": 3}
    return _create("dhvt_tiny_imagenet_patch16", pretrained, size, kwargs)


@register_model
def dhvt_small_imagenet_patch16(pretrained: bool = False, **kwargs: Any) -> DHVTWithMlp:
    """DHVT-S for ImageNet: 24.0 M parameters, 5.0 GMACs (5.1 in the paper), 82.3 %."""
    size = {"patch_size": 16, "embed_dim": 384, "num_heads": 6}
    return _create("dhvt_small_imagenet_patch16", pretrained, size, kwargs)
