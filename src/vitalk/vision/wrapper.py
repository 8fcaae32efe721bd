"""A timm backbone that holds another one and runs it in its own way."""

from typing import Any, ClassVar

from torch import Tensor, nn


class Wrapper(nn.Module):
    """A network around the timm model ``vit``: what timm's tools and the training code ask of a backbone is answered
    by that model, and the state dict has that model's own keys, so that checkpoints of one load into the other.

    inside: where the model is among the wrapper's modules. own: beginnings of the names of what else there is, which
    keeps its names.
    """

    inside: ClassVar[str] = "vit."
    own: ClassVar[tuple[str, ...]] = ()
    vit: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_drop_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def forward_features(self, images: Tensor) -> Tensor:
        """images [batch, channels, height, width] -> normalised features."""
        return self.vit.forward_features(images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Features -> logits [batch, classes], or the pooled features before the head."""
        return self.vit.forward_head(features, pre_logits=pre_logits)

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return self.vit.num_classes

    @property
    def num_features(self) -> int:
        """Width of the last tokens."""
        return self.vit.num_features

    @property
    def head_hidden_size(self) -> int:
        """Width of the pooled features that the head sees."""
        return self.vit.head_hidden_size

    @property
    def pretrained_cfg(self) -> dict[str, Any] | None:
        """The wrapped model's preprocessing and origin, as timm keeps them."""
        return getattr(self.vit, "pretrained_cfg", None)

    @property
    def default_cfg(self) -> dict[str, Any] | None:
        """timm's older name of ``pretrained_cfg``."""
        return self.pretrained_cfg

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.vit.get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for ``num_classes`` classes, 0 for none."""
        self.vit.reset_classifier(num_classes, global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in training: each block is run again in the backward pass."""
        self.vit.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone."""
        return {f"{self.inside}{name}" for name in self.vit.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, for layer-wise learning rates; what else there is, as the head."""
        return _moved(self.vit.group_matcher(coarse), self.inside.replace(".", r"\."))


def _moved(patterns: Any, inside: str) -> Any:
    """timm's name patterns, which match from the start of a name, moved under ``inside``."""
    if isinstance(patterns, str):
        return rf"^{inside}(?:{patterns.replace('^', '')})"
    if isinstance(patterns, dict):
        return {key: _moved(value, inside) for key, value in patterns.items()}
    if isinstance(patterns, list | tuple):
        return type(patterns)(_moved(value, inside) for value in patterns)
    return patterns


def _drop_prefix(wrapper: Wrapper, state: dict[str, Any], prefix: str, _: Any) -> None:
    inside = prefix + wrapper.inside
    for key in [key for key in state if key.startswith(inside)]:
        state[prefix + key.removeprefix(inside)] = state.pop(key)


def _add_prefix(wrapper: Wrapper, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if not name.startswith((wrapper.inside, *wrapper.own)):
            state[f"{prefix}{wrapper.inside}{name}"] = state.pop(key)
