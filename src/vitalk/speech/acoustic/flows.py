"""Normalizing flows over time: Glow with a condition, and mean-only couplings, which preserve volume.

Glow is that of Kingma and Dhariwal (arXiv 1807.03039) in the form of Glow-TTS (arXiv 2005.11129, appendix A):
activation norm, invertible convolution of a few channels, affine coupling with a WaveNet. The couplings without scale
are those of VITS (arXiv 2106.06103, section 2.5.2) and of PortaSpeech's prior (arXiv 2109.15166, section 3.2).
Padding is zero on both sides of every flow; masks are bool [batch, time], None where nothing is padding.
"""

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.precision import full_precision

from .gated import GatedStack, normed


def squeeze(x: Tensor, factor: int = 2) -> Tensor:
    """[batch, channels, time] -> [batch, factor * channels, time / factor]; all channels of one time, then the next's.

    Time must be a multiple of the factor.
    """
    return x.unflatten(2, (-1, factor)).permute(0, 3, 1, 2).flatten(1, 2)


def unsqueeze(x: Tensor, factor: int = 2) -> Tensor:
    """The way back from ``squeeze``."""
    return x.unflatten(1, (factor, -1)).permute(0, 2, 3, 1).flatten(2, 3)


def wavenet(hidden: int, layers: int, kernel: int, condition: int) -> GatedStack:
    """The conditioned WaveNet of flows: no dilation, plain sums, weight norm."""
    scales = {"residual_scale": 1.0, "skip_scale": 1.0, "condition_bias": True}
    return normed(GatedStack(hidden, layers, 1, kernel, 1, condition=condition, **scales))


def _times(x: Tensor, mask: Tensor | None) -> Tensor:
    """Steps of x [batch, channels, time] that are no padding, [batch]."""
    return x.new_full((len(x),), x.shape[2], dtype=torch.float32) if mask is None else mask.sum(1).float()


def _kept(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x.masked_fill(~mask[:, None], 0.0)


class ActNorm(nn.Module):
    """A scale and a shift of every channel (arXiv 1807.03039, section 3.1): y = bias + exp(log_scale) x."""

    def __init__(self, channels: int):
        super().__init__()
        self.log_scale, self.bias = (nn.Parameter(torch.zeros(1, channels, 1)) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [batch, channels, time] -> y, log-determinant [batch]."""
        y = self.bias + self.log_scale.exp() * x
        return _kept(y, mask), self.log_scale.sum() * _times(x, mask)

    def inverse(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """y -> x."""
        return _kept((y - self.bias) * (-self.log_scale).exp(), mask)

    @torch.no_grad()
    def fit(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Set scale and shift so that the channels of this batch come out with mean 0 and deviation 1."""
        x = x.transpose(0, 1).flatten(1) if mask is None else x.transpose(0, 1)[:, mask]
        self.log_scale.copy_(-x.std(1, correction=0).clamp(min=1e-3).log()[None, :, None])
        self.bias.copy_(-x.mean(1)[None, :, None] * self.log_scale.exp())


class InvertibleConv(nn.Module):
    """A 1x1 convolution of ``groups`` channels at a time by W = P L (U + diag(signs exp(log_diagonal))).

    Which channels go together: of each of the ``factor`` times that were squeezed so many that stand side by side, as
    in Glow-TTS. L has ones, U zeros on the diagonal, so that the determinant is a sum. W begins as a rotation.
    ``fold`` keeps the inverse for inference; training again forgets it.
    """

    def __init__(self, groups: int = 4, factor: int = 2):
        super().__init__()
        if groups % factor:
            raise UserError(f"{groups} channels of an invertible convolution do not divide by {factor}; choose others")
        self.groups, self.factor = groups, factor
        rotation = torch.linalg.qr(torch.randn(groups, groups, device="cpu"))[0]
        p, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", p)
        self.register_buffer("signs", diagonal.sign())
        self.lower, self.upper = nn.Parameter(lower.tril(-1)), nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(diagonal.abs().log())
        self.inverted: Tensor | None = None

    def weight(self) -> Tensor:
        """W, [groups, groups]."""
        lower = self.lower.tril(-1) + torch.eye(self.groups, device=self.lower.device)
        return self.permutation @ (lower @ (self.upper.triu(1) + (self.signs * self.log_diagonal.exp()).diag()))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [batch, channels, time] -> y, log-determinant [batch]."""
        with full_precision(x):
            mixed = self._mix(x, self.weight())
        return mixed, self.log_diagonal.sum() * (x.shape[1] // self.groups) * _times(x, mask)

    def inverse(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """y -> x."""
        with full_precision(y):
            return self._mix(y, torch.linalg.inv(self.weight()) if self.inverted is None else self.inverted)

    def fold(self) -> None:
        """Keep the inverse of W; as often as one likes."""
        self.inverted = torch.linalg.inv(self.weight().detach())

    def train(self, mode: bool = True) -> "InvertibleConv":  # noqa: D102
        self.inverted = None if mode else self.inverted
        return super().train(mode)

    def _mix(self, x: Tensor, weight: Tensor) -> Tensor:
        side = self.groups // self.factor
        x = x.unflatten(1, (self.factor, -1, side)).transpose(2, 3)  # [batch, factor, side, the others, time]
        mixed = weight.to(x.dtype) @ x.flatten(1, 2).flatten(2)
        return mixed.unflatten(2, (x.shape[3], -1)).unflatten(1, (self.factor, side)).transpose(2, 3).flatten(1, 3)


class AffineCoupling(nn.Module):
    """One half of the channels says how the other is scaled and shifted; it begins as the identity.

    channels: of both halves. stack: the WaveNet between the two 1x1 convolutions.
    """

    def __init__(self, channels: int, hidden: int, stack: GatedStack):
        super().__init__()
        self.start, self.stack = normed(nn.Conv1d(channels // 2, hidden, 1)), stack
        self.end = nn.Conv1d(hidden, channels, 1)
        nn.init.zeros_(self.end.weight), nn.init.zeros_(self.end.bias)

    def forward(self, x: Tensor, condition: Tensor | None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [batch, channels, time], condition [batch, condition, time] -> y, log-determinant [batch]."""
        still, moved = x.chunk(2, 1)
        shift, log_scale = self._say(still, condition, mask)
        return torch.cat([still, _kept(shift + log_scale.exp() * moved, mask)], 1), log_scale.sum((1, 2))

    def inverse(self, y: Tensor, condition: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """y -> x."""
        still, moved = y.chunk(2, 1)
        shift, log_scale = self._say(still, condition, mask)
        return torch.cat([still, _kept((moved - shift) * (-log_scale).exp(), mask)], 1)

    def _say(self, still: Tensor, condition: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        said = self.end(self.stack(self.start(still), condition, mask)).float()
        return _kept(said, mask).chunk(2, 1)


class GlowStep(nn.Module):
    """Activation norm, invertible convolution and affine coupling."""

    def __init__(self, channels: int, hidden: int, stack: GatedStack, groups: int, factor: int):
        super().__init__()
        self.norm, self.mix = ActNorm(channels), InvertibleConv(groups, factor)
        self.coupling = AffineCoupling(channels, hidden, stack)

    def forward(self, x: Tensor, condition: Tensor | None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [batch, channels, time] -> y, log-determinant [batch]."""
        x, first = self.norm(x, mask)
        x, second = self.mix(x, mask)
        x, third = self.coupling(x, condition, mask)
        return x, first + second + third

    def inverse(self, y: Tensor, condition: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """y -> x."""
        return self.norm.inverse(self.mix.inverse(self.coupling.inverse(y, condition, mask), mask), mask)


class Glow(nn.Module):
    """Glow between sequences x [batch, channels, time] and noise of the same shape, given a condition.

    steps: of the flow. hidden, layers, kernel: of the WaveNets. condition: its channels, 0 for none. share: so many
    steps in a row share the convolutions of their WaveNets, though not those of the condition nor the 1x1 before and
    behind: grouped parameter sharing (PortaSpeech, section 3.2); 1 shares nothing. groups: see ``InvertibleConv``.
    factor: times that become one; time must be a multiple of it, else UserError.
    """

    def __init__(
        self,
        channels: int = 80,
        hidden: int = 192,
        steps: int = 12,
        layers: int = 3,
        kernel: int = 3,
        condition: int = 0,
        share: int = 1,
        groups: int = 4,
        factor: int = 2,
    ):
        super().__init__()
        wide = channels * factor
        if wide % (2 * groups):
            raise UserError(f"{channels} bands, squeezed by {factor}, do not divide by {2 * groups}; choose a multiple")
        self.factor, self.steps = factor, nn.ModuleList()
        for i in range(steps):
            stack = wavenet(hidden, layers, kernel, condition * factor)
            if i % share:
                for own, lead in zip(stack.layers, self.steps[i - i % share].coupling.stack.layers, strict=True):
                    own.conv, own.residual, own.skip = lead.conv, lead.residual, lead.skip
            self.steps.append(GlowStep(wide, hidden, stack, groups, factor))

    def forward(self, x: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x -> noise, log-determinant [batch] summed over all that is no padding."""
        x, condition, mask = self._squeezed(x, condition, mask)
        total = x.new_zeros(len(x))
        for step in self.steps:
            x, gained = step(x, condition, mask)
            total = total + gained
        return unsqueeze(x, self.factor), total

    def inverse(self, noise: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Noise -> x."""
        x, condition, mask = self._squeezed(noise, condition, mask)
        for step in reversed(self.steps):
            x = step.inverse(x, condition, mask)
        return unsqueeze(x, self.factor)

    def fit(self, x: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Set every activation norm by this batch as it passes (arXiv 1807.03039, section 3.1)."""
        x, condition, mask = self._squeezed(x, condition, mask)
        for step in self.steps:
            step.norm.fit(x, mask)
            x, _ = step(x, condition, mask)

    def fold(self) -> None:
        """Keep the inverses of the convolutions, for inference."""
        for step in self.steps:
            step.mix.fold()

    def _squeezed(
        self, x: Tensor, condition: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if x.shape[2] % self.factor:
            raise UserError(f"{x.shape[2]} frames are no multiple of {self.factor}; crop or pad them")
        if mask is not None:  # a step counts where all of its times do
            inside = mask[:, self.factor - 1 :: self.factor]
            x, mask = _kept(x, inside.repeat_interleave(self.factor, 1)), inside
        condition = None if condition is None else squeeze(condition, self.factor)
        return squeeze(x.float(), self.factor), condition, mask


class MeanCoupling(nn.Module):
    """One half of the channels says how far the other is shifted; it begins as the identity."""

    def __init__(self, channels: int, hidden: int, layers: int, kernel: int, condition: int):
        super().__init__()
        self.start, self.stack = nn.Conv1d(channels // 2, hidden, 1), wavenet(hidden, layers, kernel, condition)
        self.end = nn.Conv1d(hidden, channels // 2, 1)
        nn.init.zeros_(self.end.weight), nn.init.zeros_(self.end.bias)

    def forward(self, x: Tensor, condition: Tensor | None, mask: Tensor | None = None, inverse: bool = False) -> Tensor:
        """x, condition [batch, condition, time] -> y, or the way back."""
        still, moved = x.chunk(2, 1)
        shift = self.end(self.stack(self.start(still), condition, mask)).float()
        return torch.cat([still, _kept(moved - shift if inverse else moved + shift, mask)], 1)


class MeanFlow(nn.Module):
    """Mean-only couplings with the channels turned round between them: the log-determinant is 0.

    channels: of what flows, even. hidden, layers, kernel: of the WaveNets. condition: its channels, 0 for none.
    """

    def __init__(
        self, channels: int, hidden: int = 64, steps: int = 4, layers: int = 4, kernel: int = 3, condition: int = 0
    ):
        super().__init__()
        if channels % 2:
            raise UserError(f"{channels} channels have no halves; choose an even number")
        self.steps = nn.ModuleList(MeanCoupling(channels, hidden, layers, kernel, condition) for _ in range(steps))

    def forward(self, x: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x [batch, channels, time] -> noise of the same shape."""
        for step in self.steps:
            x = step(x, condition, mask).flip(1)
        return x

    def inverse(self, noise: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Noise -> x."""
        for step in reversed(self.steps):
            noise = step(noise.flip(1), condition, mask, inverse=True)
        return noise
