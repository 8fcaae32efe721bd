"""Masks: which weights are alive. They are kept as zeros in the weights, and found again there."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import Aux, partition


@dataclass
class Masks:
    """kept: layer name -> bool, of the shape of its weight, True where the weight lives.

    Nothing has to be saved beside the weights: pruned ones are zeros there, and ``Masks.of`` reads them back.
    """

    kept: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, aux: Aux = "inner") -> "Masks":
        """The masks of a pruned network, from its zeros. aux: as it was pruned with."""
        return cls({name: layer.weight != 0 for name, layer in partition(model, aux).items()})

    @torch.no_grad()
    def apply(self, model: nn.Module) -> nn.Module:
        """Zero what is pruned, in place; to be done after every step that may have revived it."""
        for name in self.kept:
            weight = model.get_submodule(name).weight
            weight.masked_fill_(~self._on(name, weight), 0.0)
        return model

    def mask_gradients(self, model: nn.Module) -> None:
        """Zero the gradients of what is pruned, which else would count when gradients are clipped."""
        for name in self.kept:
            if (gradient := model.get_submodule(name).weight.grad) is not None:
                gradient.masked_fill_(~self._on(name, gradient), 0.0)

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that are gone."""
        return 1 - sum(int(mask.sum()) for mask in self.kept.values()) / sum(m.numel() for m in self.kept.values())

    @property
    def density(self) -> dict[str, float]:
        """Share of the weights that live, by layer; 0 is a collapsed layer."""
        return {name: int(mask.sum()) / mask.numel() for name, mask in self.kept.items()}

    def _on(self, name: str, like: Tensor) -> Tensor:
        if self.kept[name].device != like.device:  # once: copying in every step would cost
            self.kept[name] = self.kept[name].to(like.device)
        return self.kept[name]
