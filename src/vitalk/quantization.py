"""Quantization methods by name: those of the systems, and the baselines of the survey's workbench."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vitalk.errors import UserError, nearest
from vitalk.systems.adalog import adalog
from vitalk.systems.dopq_vit import dopq_vit
from vitalk.systems.is_vit import is_vit
from vitalk.systems.lrp_qvit import lrp_qvit
from vitalk.systems.mptq_vit import mptq_vit
from vitalk.systems.q_hyvit import q_hyvit
from vitalk.systems.repq_vit import repq_vit
from vitalk.systems.vit_quant_survey import BASELINES


@dataclass(frozen=True)
class Method:
    """A way to quantize a finished network.

    make: (model, images, weight_bits, act_bits, **options) -> a quantized copy. All take attention, integer and
    progress. steps: the option that says how many steps of reconstruction each unit gets; "" where there is none.
    short: options that go with fewer steps than ``FEW``, which the papers' small rates would leave without effect.
    deployed: options of the form that runs in integers. plain: options that give all sites the same bits.
    mixed: the options that give sites bits of their own, as a function of the average; None where there are none.
    """

    make: Callable[..., nn.Module]
    steps: str = ""
    short: dict[str, Any] = field(default_factory=dict)
    deployed: dict[str, Any] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)
    mixed: Callable[[float], dict[str, Any]] | None = None


FEW = 200
QUICK = {"batch": 32, "lr": 4e-4}
METHODS = {
    **{name.replace("_", "-"): Method(make) for name, make in BASELINES.items()},
    "repq-vit": Method(repq_vit),
    "is-vit": Method(is_vit, "iterations", QUICK),
    "adalog": Method(adalog, "reconstruct_steps"),
    "dopq-vit": Method(dopq_vit, "iterations", QUICK),
    "mptq-vit": Method(mptq_vit, deployed={"gelu": "uniform"}, mixed=lambda average: {"average_bits": average}),
    "lrp-qvit": Method(lrp_qvit, plain={"mixed": False}, mixed=lambda average: {"mixed": True}),
    "q-hyvit": Method(q_hyvit),
}


def quantize(
    name: str,
    model: nn.Module,
    images: Tensor,
    bits: tuple[int, int],
    attention: str | None = None,
    integer: bool = True,
    steps: int | None = None,
    mixed: bool = False,
    progress: bool = False,
    **more: Any,
) -> nn.Module:
    """A quantized copy of ``model``, in eval mode.

    name: of ``METHODS``. images: [count, channels, height, width]. bits: (of weights, of activations). attention: the
    quantizer of attention probabilities, "float" for none, None for the method's own. integer: the form that can be
    exported; False is the paper's. steps: of reconstruction, None for the method's own number. mixed: sites get bits
    of their own, on average those of the weights. more: options of the method itself.
    Raises UserError for names and options that do not exist.
    """
    if name not in METHODS:
        raise UserError(f"there is no quantization {name}; choose {', '.join(METHODS)}.{nearest(name, list(METHODS))}")
    method, options = METHODS[name], {}
    if steps is not None:
        if not method.steps:
            raise UserError(f"{name} reconstructs nothing; leave out the steps, or choose {_with('steps')}")
        options[method.steps] = steps
        options |= method.short if steps < FEW else {}
    if mixed:
        if method.mixed is None:
            raise UserError(f"{name} has one number of bits for all; for mixed precision choose {_with('mixed')}")
        options |= method.mixed(bits[0])
    else:
        options |= method.plain
    if attention is not None:
        options["attention"] = attention
    if integer and attention == "float":
        options |= method.deployed
    return method.make(model, images, *bits, integer=integer, progress=progress, **options, **more)


def _with(option: str) -> str:
    return ", ".join(name for name, method in METHODS.items() if getattr(method, option))
