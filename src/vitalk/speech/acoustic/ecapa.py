"""ECAPA-TDNN: the vector of a speaker from frames of any kind (Desplanques et al., arXiv 2005.07143).

The sizes, the global context of the pooling and the names in checkpoints are those of SpeechBrain's release, which
FireRedTTS carries too; ``from_speechbrain`` loads either. Everything is [batch, channels, time], masks are bool
[batch, time], None where nothing is padding.
"""

import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.precision import full_precision

Edges = Literal["zeros", "reflect"]


class TDNN(nn.Module):
    """Convolution of so many frames, ReLU, batch norm. edges: what the convolution sees beyond both ends."""

    def __init__(self, channels: int, out: int, kernel: int = 1, dilation: int = 1, edges: Edges = "zeros"):
        super().__init__()
        reach = (kernel - 1) // 2 * dilation
        self.conv = nn.Conv1d(channels, out, kernel, dilation=dilation, padding=reach, padding_mode=edges)
        self.norm = nn.BatchNorm1d(out)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [batch, channels, time] -> [batch, out, time]; padding is zeroed before a convolution of several frames.

        Not so with reflected edges: the releases let padding into their convolutions.
        """
        if mask is not None and self.conv.kernel_size[0] > 1 and self.conv.padding_mode == "zeros":
            x = x.masked_fill(~mask[:, None], 0.0)
        return self.norm(self.conv(x).relu())


class Res2(nn.Module):
    """Res2Net (arXiv 1904.01169): channels in ``scale`` parts, each convolved with what came of the one before.

    The first part stays as it is: [batch, channels, time] -> the same shape.
    """

    def __init__(self, channels: int, scale: int = 8, kernel: int = 3, dilation: int = 1, edges: Edges = "zeros"):
        super().__init__()
        if channels % scale or scale < 2:
            raise UserError(
                f"{channels} channels do not make {scale} parts of a Res2Net; choose a multiple of 2 or more"
            )
        part = channels // scale
        self.parts = nn.ModuleList(TDNN(part, part, kernel, dilation, edges) for _ in range(scale - 1))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        first, *others = x.chunk(len(self.parts) + 1, 1)
        done: list[Tensor] = []
        for own, part in zip(others, self.parts, strict=True):
            done.append(part(own + done[-1] if done else own, mask))
        return torch.cat([first, *done], 1)


class SqueezeExcitation(nn.Module):
    """Channels scaled by what their means over time say (arXiv 2005.07143, eq. 3 and 4)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(channels, hidden, 1), nn.Conv1d(hidden, channels, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [batch, channels, time] -> the same shape."""
        if mask is None:
            mean = x.mean(2, keepdim=True)
        else:
            mean = x.masked_fill(~mask[:, None], 0.0).sum(2, keepdim=True) / mask.sum(1).clamp(min=1)[:, None, None]
        return x * self.conv2(self.conv1(mean).relu()).sigmoid()


class SERes2Block(nn.Module):
    """1x1, Res2Net, 1x1 and squeeze-excitation, added to what came in (arXiv 2005.07143, section 3.2)."""

    def __init__(
        self, channels: int, out: int, kernel: int, dilation: int, scale: int = 8, squeeze: int = 128,
        edges: Edges = "zeros",
    ):  # fmt: skip
        super().__init__()
        self.tdnn1, self.res2 = TDNN(channels, out), Res2(out, scale, kernel, dilation, edges)
        self.tdnn2, self.se = TDNN(out, out), SqueezeExcitation(out, squeeze)
        self.shortcut = nn.Conv1d(channels, out, 1) if channels != out else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [batch, channels, time] -> [batch, out, time]."""
        whole = x if self.shortcut is None else self.shortcut(x)
        return whole + self.se(self.tdnn2(self.res2(self.tdnn1(x), mask)), mask)


class AttentivePooling(nn.Module):
    """Mean and deviation over time, weighted by attention for every channel apart (arXiv 2005.07143, section 3.1).

    The attention sees each frame and the mean and deviation of all: [batch, channels, time] -> [batch, 2 channels].
    """

    def __init__(self, channels: int, hidden: int = 128):
        super().__init__()
        self.tdnn, self.conv = TDNN(3 * channels, hidden), nn.Conv1d(hidden, channels, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        with full_precision(x):
            x = x.float()
            inside = x.new_ones(len(x), 1, x.shape[2]) if mask is None else mask[:, None].to(x.dtype)
            mean, deviation = _moments(x, inside / inside.sum(2, keepdim=True).clamp(min=1))
            seen = torch.cat([x, mean.expand_as(x), deviation.expand_as(x)], 1)
            scores = self.conv(self.tdnn(seen).tanh())
            scores = scores.masked_fill(inside == 0, torch.finfo(scores.dtype).min)
            return torch.cat(_moments(x, scores.softmax(2)), 1)[:, :, 0]


class EcapaTDNN(nn.Module):
    """Frames [batch, inputs, time] -> vectors of speakers [batch, dim], not normalised.

    channels, kernels, dilations: of the first layer, the blocks and the layer that joins the blocks. scale: of the
    Res2Nets. attention, squeeze: widths within the pooling and the squeeze-excitations.
    edges: "zeros", ours, with which an utterance gives the same alone and in a padded batch; "reflect" as released.
    Raises UserError where there are not as many sizes of each kind.
    """

    def __init__(
        self,
        inputs: int,
        dim: int = 192,
        channels: Sequence[int] = (512, 512, 512, 512, 1536),
        kernels: Sequence[int] = (5, 3, 3, 3, 1),
        dilations: Sequence[int] = (1, 2, 3, 4, 1),
        scale: int = 8,
        attention: int = 128,
        squeeze: int = 128,
        edges: Edges = "zeros",
    ):
        super().__init__()
        if not 3 <= len(channels) == len(kernels) == len(dilations):
            raise UserError(
                f"{len(channels)} channels, {len(kernels)} kernels and {len(dilations)} dilations of an ECAPA-TDNN; "
                "give as many of each, 3 or more"
            )
        first, *inner, last = zip(channels, kernels, dilations, strict=True)
        self.blocks = nn.ModuleList([TDNN(inputs, *first, edges)])
        for before, (out, kernel, dilation) in zip(channels, inner, strict=False):
            self.blocks.append(SERes2Block(before, out, kernel, dilation, scale, squeeze, edges))
        self.mfa = TDNN(sum(out for out, _, _ in inner), *last, edges)
        self.asp, self.asp_bn = AttentivePooling(last[0], attention), nn.BatchNorm1d(2 * last[0])
        self.fc = nn.Linear(2 * last[0], dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [batch, inputs, time], mask [batch, time] -> [batch, dim]."""
        found = []
        for block in self.blocks:
            x = block(x, mask)
            found.append(x)
        return self.fc(self.asp_bn(self.asp(self.mfa(torch.cat(found[1:], 1), mask), mask)))


def from_speechbrain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of speechbrain's ``ECAPA_TDNN``, or of FireRedTTS' copy, for ``EcapaTDNN(edges="reflect")``.

    The last convolution of one frame is a linear layer here.
    """
    out = {}
    for key, value in state.items():
        name = re.sub(r"(\.conv[12]?|^fc|\.shortcut)\.conv\.", r"\1.", key)
        name = re.sub(r"(\.norm|^asp_bn)\.norm\.(bn\.)?", r"\1.", name)
        name = name.replace(".res2net_block.blocks.", ".res2.parts.").replace(".se_block.", ".se.")
        out[name] = value[..., 0] if name == "fc.weight" and value.ndim == 3 else value
    return out


def _moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and deviation over time, [batch, channels, 1] each; weights sum to 1 over time."""
    mean = (weights * x).sum(2, keepdim=True)
    return mean, (weights * (x - mean).square()).sum(2, keepdim=True).clamp(min=1e-12).sqrt()
