"""How long symbols last, drawn from a distribution: VITS' stochastic duration predictor (arXiv 2106.06103, 2.2.2).

A flow of two channels by rational-quadratic splines (arXiv 1906.04032), trained by variational dequantisation and
augmentation. Everything is [batch, channels, text]; masks are bool [batch, text], None where nothing is padding.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.nn.precision import full_precision
from vitalk.speech.acoustic.flows import ActNorm
from vitalk.speech.acoustic.noise import Draw

LOG_2PI = math.log(2 * math.pi)
BINS, BOUND, LEAST = 10, 5.0, 1e-3  # of the splines: their pieces, where they end, least width, height and slope


def kept(x: Tensor, mask: Tensor | None) -> Tensor:
    """x [batch, channels, time] with zeros where the mask [batch, time] is False."""
    return x if mask is None else x.masked_fill(~mask[:, None], 0.0)


def spline(x: Tensor, shape: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """(y, logarithm of the slope) of monotonic rational-quadratic pieces between -5 and 5; beyond, y = x.

    x: [...]. shape: [..., 29], what widths and heights of the 10 pieces are the softmax of, and the slopes at the 9
    inner knots their softplus. inverse: the way back, with the slope of the way there. Source: arXiv 1906.04032, 3.1.
    """
    widths, heights, slopes = shape.split([BINS, BINS, BINS - 1], -1)
    across, along = _knots(widths), _knots(heights)
    # Slope 1 at both ends, where the straight lines go on.
    slopes = LEAST + F.softplus(F.pad(slopes, (1, 1), value=math.log(math.exp(1 - LEAST) - 1)))
    inside = x.abs() <= BOUND
    limited = x.clamp(-BOUND, BOUND)
    edges = along if inverse else across
    piece = (limited[..., None] >= edges[..., 1:-1]).sum(-1, keepdim=True)

    def at(table: Tensor, offset: int = 0) -> Tensor:
        return table.gather(-1, piece + offset)[..., 0]

    left, low = at(across), at(along)
    width, height = at(across, 1) - left, at(along, 1) - low
    steep = height / width
    first, last = at(slopes), at(slopes, 1)
    bend = first + last - 2 * steep
    if inverse:
        above = limited - low
        a, b, c = above * bend + height * (steep - first), height * first - above * bend, -steep * above
        part = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
        y = part * width + left
    else:
        part = (limited - left) / width
        y = low + height * (steep * part.square() + first * part * (1 - part)) / (steep + bend * part * (1 - part))
    both = part * (1 - part)
    gained = (last * part.square() + 2 * steep * both + first * (1 - part).square()).log() + 2 * steep.log()
    gained = gained - 2 * (steep + bend * both).log()
    return torch.where(inside, y, x), torch.where(inside, gained, 0.0)


def _knots(sizes: Tensor) -> Tensor:
    """Unnormalised sizes [..., 10] -> where pieces begin and end, [..., 11] from -5 to 5."""
    sizes = LEAST + (1 - LEAST * BINS) * sizes.softmax(-1)
    inner = 2 * BOUND * sizes.cumsum(-1)[..., :-1] - BOUND
    return F.pad(F.pad(inner, (1, 0), value=-BOUND), (0, 1), value=BOUND)


class SeparableStack(nn.Module):
    """Depthwise convolutions of growing dilation and 1x1 ones, all added: [batch, channels, text], the same shape."""

    def __init__(self, channels: int, kernel: int = 3, layers: int = 3, dropout: float = 0.0):
        super().__init__()
        self.depthwise = nn.ModuleList(
            nn.Conv1d(
                channels, channels, kernel, groups=channels, dilation=kernel**i, padding=(kernel // 2) * kernel**i
            )
            for i in range(layers)
        )
        self.pointwise = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in range(layers))
        self.norms1, self.norms2 = (nn.ModuleList(nn.LayerNorm(channels) for _ in range(layers)) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """condition: of the shape of x, added first."""
        x = x if condition is None else x + condition
        for depthwise, pointwise, norm1, norm2 in zip(
            self.depthwise, self.pointwise, self.norms1, self.norms2, strict=True
        ):
            h = F.gelu(norm1(depthwise(kept(x, mask)).transpose(1, 2)).transpose(1, 2))
            h = F.gelu(norm2(pointwise(h).transpose(1, 2)).transpose(1, 2))
            x = x + self.dropout(h)
        return kept(x, mask)


class SplineCoupling(nn.Module):
    """One of two channels says by which spline the other moves; it begins as the identity, nearly."""

    def __init__(self, hidden: int, kernel: int = 3):
        super().__init__()
        self.start, self.stack = nn.Conv1d(1, hidden, 1), SeparableStack(hidden, kernel)
        self.end = nn.Conv1d(hidden, 3 * BINS - 1, 1)
        nn.init.zeros_(self.end.weight), nn.init.zeros_(self.end.bias)

    def forward(
        self, x: Tensor, condition: Tensor, mask: Tensor | None = None, inverse: bool = False
    ) -> tuple[Tensor, Tensor] | Tensor:
        """x [batch, 2, text], condition [batch, hidden, text] -> y, log-determinant [batch]; or the way back, x."""
        still, moved = x.chunk(2, 1)
        said = self.end(self.stack(self.start(still), condition, mask))
        with full_precision(x):
            shape = said.float().transpose(1, 2)[:, None]  # [batch, 1, text, 29]
            scale = torch.cat([shape.new_full((2 * BINS,), self.start.out_channels**-0.5), shape.new_ones(BINS - 1)])
            moved, gained = spline(moved.float(), shape * scale, inverse)
        y = kept(torch.cat([still, moved], 1), mask)
        return y if inverse else (y, kept(gained, mask).sum((1, 2)))


class SplineFlow(nn.Module):
    """A scale and a shift, then couplings with the two channels changing places: [batch, 2, text]."""

    def __init__(self, hidden: int, kernel: int, steps: int):
        super().__init__()
        self.norm = ActNorm(2)
        self.steps = nn.ModuleList(SplineCoupling(hidden, kernel) for _ in range(steps))

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x -> noise, log-determinant [batch]."""
        x, total = self.norm(x, mask)
        for step in self.steps:
            x, gained = step(x, condition, mask)
            x, total = x.flip(1), total + gained
        return x, total

    def inverse(self, noise: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """Noise -> x, of which only the first channel counts.

        The first coupling, which moves the other one, is left out as in VITS, unless something stands beside it.
        """
        for i, step in reversed(list(enumerate(self.steps))):
            noise = noise.flip(1)
            if i or not isinstance(step, SplineCoupling):
                noise = step(noise, condition, mask, inverse=True)
        return self.norm.inverse(noise, mask)


class StochasticDuration(nn.Module):
    """p(durations | text, speaker) as a flow, with q for what makes whole numbers continuous.

    dim: of the text's states. speaker: width of speakers' vectors. steps: couplings of either flow. No gradient
    reaches text or speaker.
    """

    def __init__(self, dim: int, speaker: int, kernel: int = 3, dropout: float = 0.5, steps: int = 4):
        super().__init__()
        self.enter, self.leave = nn.Conv1d(dim, dim, 1), nn.Conv1d(dim, dim, 1)
        self.speaker, self.stack = nn.Conv1d(speaker, dim, 1), SeparableStack(dim, kernel, dropout=dropout)
        self.flow = SplineFlow(dim, kernel, steps)
        self.post_enter, self.post_leave = nn.Conv1d(1, dim, 1), nn.Conv1d(dim, dim, 1)
        self.post_stack, self.post = SeparableStack(dim, kernel, dropout=dropout), SplineFlow(dim, kernel, steps)

    def forward(self, hidden: Tensor, durations: Tensor, voice: Tensor, draw: Draw, mask: Tensor | None) -> Tensor:
        """Upper bound of -log p(durations) in nats, [batch].

        hidden [batch, dim, text], durations int64 [batch, text] >= 1 but for the padding, voice [batch, speaker].
        """
        condition = self.condition(hidden, voice, mask)
        frames = durations[:, None].float()
        told = self.post_leave(self.post_stack(self.post_enter(frames), None, mask))
        noise = kept(draw((len(frames), 2, frames.shape[2])), mask)
        z, gained = self.post(noise, kept(condition + told, mask), mask)
        with full_precision(noise):
            below, other = z.float().chunk(2, 1)
            slope = kept(F.logsigmoid(below) + F.logsigmoid(-below), mask).sum((1, 2))
            logs = kept((frames - below.sigmoid()).clamp(min=1e-5).log(), mask)
            normal = kept(noise.square() + LOG_2PI, mask).sum((1, 2)) / 2
        out, moved = self.flow(torch.cat([logs, other], 1), condition, mask)
        likelihood = -kept(out.square() + LOG_2PI, mask).sum((1, 2)) / 2 + moved - logs.sum((1, 2))
        return -likelihood - normal - gained - slope

    def sample(self, hidden: Tensor, voice: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logarithms of durations in frames, [batch, text]. noise: [batch, 2, text], of which deviation ever."""
        return self.flow.inverse(kept(noise, mask), self.condition(hidden, voice, mask), mask)[:, 0]

    def condition(self, hidden: Tensor, voice: Tensor, mask: Tensor | None) -> Tensor:
        """What the flow is told of text and speaker, [batch, dim, text]."""
        x = self.enter(hidden.detach()) + self.speaker(voice.detach()[:, :, None])
        return kept(self.leave(self.stack(x, None, mask)), mask)
