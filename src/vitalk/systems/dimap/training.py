"""Fine-tuning what was pruned: with fixed masks, or as a smaller dense network."""

from itertools import islice
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from torch import nn
from torch.optim import Optimizer

from vitalk.errors import UserError
from vitalk.vision.classifier import Classifier, load_weights

from .layers import Aux
from .masks import Masks
from .method import Of, dimap
from .scores import Ranking
from .slim import shape, slim

TAYLOR_BATCHES = 8


class PrunedClassifier(Classifier):
    """Prunes once and trains on with the masks fixed (arXiv 2404.13648, section 3).

    Gradients of pruned weights are zeroed before they are clipped, the weights themselves after every step, before
    validation and in every checkpoint, so that neither momentum and weight decay nor moving averages revive them.
    A resumed run finds its masks in the zeros of its checkpoint. Works on several GPUs (DDP), but not with weights in
    shards (FSDP).

    init (or ``model_args: {pretrained: true}``): the weights to prune, a ``.safetensors`` file or checkpoint, official
    Swin ones too. model, num_classes and the other arguments are the ``Classifier``'s.
    rate, of, ranking, aux: of ``dimap``; the ranking "taylor" looks at the first batches.
    prune_epoch: the epoch before which the cut is made, counted from 0; above 0 the network is trained densely first.

    Raises UserError as ``dimap`` does, and where random weights would be pruned.
    """

    def __init__(
        self,
        model: str,
        num_classes: int = 1000,
        init: str | None = None,
        rate: float = 0.5,
        of: Of = "weights",
        ranking: Ranking = "module",
        aux: Aux = "inner",
        prune_epoch: int = 0,
        **kwargs: Any,
    ):
        super().__init__(model=model, num_classes=num_classes, **kwargs)
        load_trained(self.model, init)
        self.masks: Masks | None = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """The cut, when its epoch has come; for a resumed run, which may begin anywhere, too.

        What was cut before is as sparse as asked, so that cutting it again finds the same masks.
        """
        h = self.hparams
        if self.masks is not None or self.current_epoch < h.prune_epoch:
            return
        if h.prune_epoch == 0:
            require_trained(self)
        batches = islice(self.trainer.train_dataloader, TAYLOR_BATCHES) if h.ranking == "taylor" else None
        self.masks = dimap(self.model, h.rate, h.of, h.ranking, h.aux, batches=batches)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:  # noqa: D102
        if self.masks is not None:
            self.masks.mask_gradients(self.model)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step, and the masks at once: moving averages are taken right afterwards."""
        super().optimizer_step(*args, **kwargs)
        self._mask()

    def on_validation_epoch_start(self) -> None:
        """The masks on what is validated, which may be a moving average that began before the cut."""
        self._mask()

    def on_train_end(self) -> None:
        """The masks on the final weights, which may be a moving average."""
        self._mask()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Masked weights, averaged ones too."""
        if self.masks is not None:
            state = checkpoint["state_dict"]
            for name, kept in self.masks.kept.items():
                key = f"model.{name}.weight"
                state[key] = torch.where(kept.to(state[key].device), state[key], 0.0)

    def _mask(self) -> None:
        if self.masks is not None:
            self.masks.apply(self.model)


class SlimClassifier(Classifier):
    """Slims a trained network (``slim``) and trains what is left of it, a smaller dense network.

    init (or ``model_args: {pretrained: true}``): the weights to slim, as for ``PrunedClassifier``. model, num_classes
    and the other arguments are the ``Classifier``'s.
    rate: share of the MACs that goes. The result is a ``dimap_slim``, which every verb loads.

    Raises UserError as ``slim`` does, and where random weights would be slimmed.
    """

    def __init__(self, model: str, num_classes: int = 1000, init: str | None = None, rate: float = 0.3, **kwargs: Any):
        super().__init__(model=model, num_classes=num_classes, **kwargs)
        load_trained(self.model, init)
        require_trained(self)
        self.model = slim(self.model, rate)
        args = {k: v for k, v in (self.hparams.model_args or {}).items() if k != "pretrained"}
        self.hparams.update(model="dimap_slim", model_args={**args, "trunk": model, **shape(self.model)})


def load_trained(model: nn.Module, init: str | None) -> None:
    """Load weights into ``model``, where there are any; Swin's official ones have their names changed to timm's."""
    if init is not None:
        if isinstance(model, SwinTransformer):  # has no filter of its own, and else its patch merging would be left out
            model.checkpoint_filter_fn = checkpoint_filter_fn
        load_weights(model, init)


def require_trained(module: Classifier) -> None:
    """Raise UserError where a classifier began from random weights, of which none is worth more than another."""
    h = module.hparams
    if h.get("init") is None and not (h.get("model_args") or {}).get("pretrained"):
        raise UserError(
            f"{h.model} has random weights, which are not worth pruning; name trained ones with init, or "
            "pretrained: true in model_args"
        )
