"""HiFi-GAN: transposed convolutions and fused residual blocks up to the sample rate (arXiv 2010.05646)."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from vitalk.errors import UserError

SIZES: dict[str, dict[str, Any]] = {  # table in appendix A.1
    "v1": {"channels": 512, "rates": (8, 8, 2, 2), "kernels": (16, 16, 4, 4), "resblock": 1},
    "v2": {"channels": 128, "rates": (8, 8, 2, 2), "kernels": (16, 16, 4, 4), "resblock": 1},
    "v3": {"channels": 256, "rates": (8, 8, 4), "kernels": (16, 16, 8), "resblock": 2},
}
RESBLOCKS = {  # kind: (kernels, dilations)
    1: ((3, 7, 11), ((1, 3, 5),) * 3),
    2: ((3, 5, 7), ((1, 2), (2, 6), (3, 12))),
}
SLOPE = 0.1


class ResBlock2(nn.Module):
    """The lighter residual block (appendix A.1): a dilated convolution a step, [batch, channels, time]."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=(kernel - 1) * d // 2) for d in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, time] -> the same shape."""
        for conv in self.convs:
            x = x + conv(F.leaky_relu(x, SLOPE))
        return x


class Upsampler(nn.Module):
    """The layers of HiFi-GAN without what follows the last convolution; transformers' SpeechT5HifiGan builds them.

    Log-mel [batch, n_mels, frames] -> [batch, outputs, frames * product of rates]. channels: after the first
    convolution, halved at every rate. kernels: of the transposed convolutions, as even or odd as the rates.
    resblock: 1 or 2. reflect: frames reflected on the left before the last convolution.
    Convolutions are weight-normalised and start as torch's do: the official N(0, 0.01) is drawn after the weight norm
    was put on, which overwrites it at the first step. Raises UserError for kernels that do not fit the rates.
    """

    def __init__(
        self,
        n_mels: int,
        channels: int,
        rates: Sequence[int],
        kernels: Sequence[int],
        resblock: Literal[1, 2] = 1,
        outputs: int = 1,
        reflect: int = 0,
    ):
        super().__init__()
        _check(channels, rates, kernels, resblock)
        sizes, dilations = RESBLOCKS[resblock]
        self.net = SpeechT5HifiGan(
            SpeechT5HifiGanConfig(
                model_in_dim=n_mels, upsample_initial_channel=channels, upsample_rates=list(rates),
                upsample_kernel_sizes=list(kernels), resblock_kernel_sizes=list(sizes),
                resblock_dilation_sizes=[list(d) for d in dilations], leaky_relu_slope=SLOPE, normalize_before=False,
            )
        )  # fmt: skip
        del self.net.mean, self.net.scale  # of normalize_before
        if resblock == 2:
            widths = [channels // 2 ** (i + 1) for i in range(len(rates))]
            shapes = list(zip(sizes, dilations, strict=True))
            self.net.resblocks = nn.ModuleList(ResBlock2(width, k, d) for width in widths for k, d in shapes)
        self.net.conv_post = nn.Conv1d(channels // 2 ** len(rates), outputs, 7, padding=3)
        self.reflect = reflect
        for module in list(self.net.modules()):
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                module.reset_parameters()
                weight_norm(module)

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel [batch, mels, frames] -> [batch, outputs, time]."""
        net = self.net
        x = net.conv_pre(mel)
        for i, up in enumerate(net.upsampler):
            x = up(F.leaky_relu(x, SLOPE))
            blocks = net.resblocks[i * net.num_kernels : (i + 1) * net.num_kernels]
            x = sum(block(x) for block in blocks) / net.num_kernels
        x = F.leaky_relu(x)  # 0.01 here, as in the official code
        return net.conv_post(F.pad(x, (self.reflect, 0), mode="reflect") if self.reflect else x)


class HifiGan(nn.Module):
    """Log-mel [batch, mels, frames] -> wave [batch, frames * product of rates]; arguments as of ``Upsampler``.

    The published generators are ``HifiGan(**SIZES["v1"])``, "v2" and "v3" at the mel preset "hifigan".
    """

    def __init__(
        self,
        n_mels: int = 80,
        channels: int = 512,
        rates: Sequence[int] = (8, 8, 2, 2),
        kernels: Sequence[int] = (16, 16, 4, 4),
        resblock: Literal[1, 2] = 1,
    ):
        super().__init__()
        self.upsampler = Upsampler(n_mels, channels, rates, kernels, resblock)
        self.hop = math.prod(rates)

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel [batch, mels, frames] -> wave [batch, samples]."""
        return torch.tanh(self.upsampler(mel).float())[:, 0]


def remove_weight_norm(module: nn.Module) -> nn.Module:
    """Fold the weight norm of all layers into plain weights, for inference; returns the module."""
    for layer in [m for m in module.modules() if parametrize.is_parametrized(m, "weight")]:
        with torch.enable_grad():  # without, torch leaves plain tensors that no state dict holds
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return module


def from_official(state: dict[str, Any]) -> dict[str, Tensor]:
    """A checkpoint of jik876/hifi-gan (or rishikksh20/iSTFTNet-pytorch) for ``HifiGan`` (``IstftNet``).

    Its "generator" entry or that entry itself; weights normalised (weight_g, weight_v) or folded.
    """
    state = state.get("generator", state)
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        layer, _, what = key.rpartition(".")
        name = "upsampler.net." + ("upsampler." + layer[4:] if layer.startswith("ups.") else layer)
        weight = f"{name}.parametrizations.weight.original"
        if what == "weight":
            out |= {f"{weight}0": value.norm(dim=(1, 2), keepdim=True), f"{weight}1": value}
        else:
            out[{"weight_g": f"{weight}0", "weight_v": f"{weight}1"}.get(what, f"{name}.{what}")] = value
    return out


def _check(channels: int, rates: Sequence[int], kernels: Sequence[int], resblock: int) -> None:
    if len(rates) != len(kernels) or any(k < u or (k - u) % 2 for u, k in zip(rates, kernels, strict=True)):
        raise UserError(
            f"kernels {list(kernels)} do not fit the rates {list(rates)}; each must exceed its rate by an even number"
        )
    if channels % 2 ** len(rates):
        raise UserError(
            f"{channels} channels cannot be halved {len(rates)} times; give a multiple of {2 ** len(rates)}"
        )
    if resblock not in RESBLOCKS:
        raise UserError(f"there is no resblock {resblock}; choose 1 or 2")
