"""Quantization-aware training: learned steps (LSQ) under distillation from the float network.

``quantized_vit`` is a timm model, so that training, files and export take it as any other; ``QuantizationAware`` is the
classifier that trains it. ``by_blocks`` tunes a calibrated network without training it as a whole, for comparison.
"""

import copy
from functools import partial
from typing import Any, Literal

import timm
import torch
from timm.models import register_model
from torch import Tensor, nn

from vitalk.nn.quant import Policy, UniformQuantizer, calibrate, fold_batch_norms, place, quantizers, switched_off
from vitalk.nn.quant.quantizers import SMALLEST_SCALE
from vitalk.nn.quant.reconstruct import capture, reconstruct, units
from vitalk.vision.classifier import Classifier

from .baselines import Attention, softmax_quantizer

PICTURES = 64  # of the first batch, that scales start from


@register_model
def quantized_vit(
    pretrained: bool = False,
    base: str = "deit_tiny_patch16_224",
    weight_bits: int = 4,
    act_bits: int = 4,
    attention: Attention = "uniform",
    **kwargs: Any,
) -> nn.Module:
    """The timm model ``base`` with quantizers whose scales are parameters; kwargs are the base's.

    Weights have symmetric codes with a scale a row, activations whole zero points and a scale a tensor, so that what
    was trained can be exported. Scales of activations mean nothing until training or ``start`` has set them; the
    buffer ``calibrated`` says whether they are. attention: of the probabilities, "float" for both products.
    """
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(name, None)
    model = timm.create_model(base, pretrained=pretrained, **kwargs)
    weights = partial(UniformQuantizer, axis=0, symmetric=True)
    policy = Policy(weights, products=None)
    if attention != "float":
        policy = Policy(weights, softmax=softmax_quantizer(attention, UniformQuantizer, None))
    model = place(model, weight_bits, act_bits, policy)
    for name, quantizer in quantizers(model).items():
        if name.endswith("weight_quantizer"):
            quantizer.fit(model.get_submodule(name.rpartition(".")[0]).weight.detach())
        else:
            for part, _ in list(quantizer.named_buffers(recurse=False)):
                setattr(quantizer, part, torch.ones(()) if part == "scale" else torch.zeros(()))
    _learn(model)
    model.register_buffer("calibrated", torch.tensor(False))
    model.checkpoint_filter_fn = partial(_with_folded_norms, base, kwargs)
    return model.train()


def _learn(model: nn.Module, on: bool = True) -> None:
    for quantizer in quantizers(model).values():
        if isinstance(quantizer, UniformQuantizer) and quantizer.fitted:
            quantizer.learn(on)


def _with_folded_norms(
    base: str, kwargs: dict[str, Any], state: dict[str, Tensor], _: nn.Module
) -> dict[str, Tensor]:  # fmt: skip
    """The state of the float ``base`` as its quantized form has it; what is quantized stays as it is."""
    if any(key.endswith("weight_quantizer.scale") for key in state):
        return state
    model = timm.create_model(base, **kwargs)
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    folded = fold_batch_norms(model.eval()).state_dict()
    lost = {key for key in own if key not in fitting and not key.endswith("num_batches_tracked")}
    return {key: value for key, value in folded.items() if key not in lost}


def started(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What calibration on ``images`` finds for the quantizers of a ``quantized_vit``, by name in its state."""
    scratch = copy.deepcopy(model)
    for quantizer in quantizers(scratch).values():
        quantizer.learn(False)
    calibrate(scratch, images)
    return {key: value for key, value in scratch.state_dict().items() if "_quantizer." in key}


@torch.no_grad()
def start(model: nn.Module, found: dict[str, Tensor]) -> None:
    """Let a ``quantized_vit`` go on from what ``started`` found, in place."""
    own = model.state_dict()
    for key, value in found.items():
        own[key].copy_(value)
    model.calibrated.fill_(True)


class QuantizationAware(Classifier):
    """Trains a ``quantized_vit``: weights and steps together (LSQ, arXiv 1902.08153).

    The first batch calibrates the scales. The network as it was before, in float, is distilled where there is one
    (``init`` or pretrained weights) and no other teacher is named: weights of random numbers teach nothing.
    LSQ divides the steps' gradients by the square root of the count; AdamW, which looks at no magnitudes, makes that
    moot.

    model, num_classes, init, …: the ``Classifier``'s. alpha: 1 for distillation alone, without labels.
    Raises UserError as the ``Classifier`` does.
    """

    def __init__(
        self,
        model: str = "quantized_vit",
        num_classes: int = 1000,
        model_args: dict[str, Any] | None = None,
        init: str | None = None,
        teacher: str | None = None,
        distillation: Literal["soft", "hard"] = "soft",
        alpha: float = 1.0,
        tau: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(
            model, model_args, num_classes, init, teacher=teacher, distillation=distillation, alpha=alpha, tau=tau,
            **kwargs,
        )  # fmt: skip
        if teacher is None and (init is not None or (model_args or {}).get("pretrained")):
            self.teacher.append(float_copy(self.model))

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Before the first step of all, quantizers take their scales from the batch; all processes the same."""
        if not self.model.calibrated:
            found = started(self.model, batch[0][:PICTURES].detach())
            start(self.model, self.trainer.strategy.broadcast(found))

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        """Steps stay positive."""
        for quantizer in quantizers(self.model).values():
            quantizer.scale.clamp_min_(SMALLEST_SCALE)


def float_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that computes in float and learns nothing."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for quantizer in quantizers(model).values():
        quantizer.enabled = False
    return model


def by_blocks(quantized: nn.Module, images: Tensor, steps: int, lr: float = 1e-4, batch: int = 32) -> nn.Module:
    """A copy of a calibrated network whose units were tuned one by one to put out what they do in float.

    Weights and uniform steps learn together, ``steps`` steps of all units in sum. images: [pictures, channels, height,
    width], without labels.
    """
    with torch.inference_mode(False):
        original, tuned = copy.deepcopy(quantized), copy.deepcopy(quantized)
        images = images.detach().clone()
        parts = units(tuned)
        for name, unit in parts.items():
            with switched_off(original):
                _, targets = capture(original, original.get_submodule(name), images)
            inputs, _ = capture(tuned, unit, images)
            _learn(unit)
            reconstruct(unit, inputs, targets, [{"params": list(unit.parameters()), "lr": lr}],
                        max(steps // len(parts), 1), batch)  # fmt: skip
            for quantizer in quantizers(unit).values():
                quantizer.scale.data.clamp_min_(SMALLEST_SCALE)
            _learn(unit, on=False)
    return tuned
