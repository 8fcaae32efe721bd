"""The non-causal WaveNet stack: dilated convolutions with gates, conditioned, summed over skips."""

from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from vitalk.errors import UserError


class GatedLayer(nn.Module):
    """One layer: x, condition [batch, channels, time] -> what goes on, what is skipped to the end.

    h = tanh(Wf * x + Vf c) . sigmoid(Wg * x + Vg c); on goes (x + Wr h) times a scale, skipped is Ws h.
    The last layer of a stack whose way on leads nowhere has no Wr.
    """

    def __init__(
        self, channels: int, skip: int, kernel: int, dilation: int, condition: int, dropout: float, residual: bool,
        condition_bias: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.conv = nn.Conv1d(channels, 2 * channels, kernel, dilation=dilation, padding=kernel // 2 * dilation)
        self.condition = nn.Conv1d(condition, 2 * channels, 1, bias=condition_bias) if condition else None
        self.residual = nn.Conv1d(channels, channels, 1) if residual else None
        self.skip, self.dropout = nn.Conv1d(channels, skip, 1), nn.Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        """scale: of the sum that goes on."""
        h = self.conv(self.dropout(x))
        if self.condition is not None:
            h = h + self.condition(condition)
        a, b = h.chunk(2, 1)
        h = a.tanh() * b.sigmoid()
        return x if self.residual is None else (x + self.residual(h)) * scale, self.skip(h)


class GatedStack(nn.Module):
    """Gated layers in cycles of dilations base^0, base^1 ...: [batch, channels, time] -> [batch, skip, time].

    layers: in all. cycles: how often the dilations start anew. kernel: steps, odd. skip: channels of the output, by
    default those of the input. condition: channels of a condition of the same length, 0 for none; condition_bias: of
    its convolutions, which only tells where stacks share the others.
    residual_scale, skip_scale: of the sum that goes on in every layer and of the sum of the skips; sqrt(1/2) and
    sqrt(1/layers) in Parallel WaveGAN (arXiv 1910.11480), 1 and 1 in Glow-like flows.
    receptive_field: steps that one step of the output sees. For weight norm see ``normed``.
    Raises UserError for layers that make no whole cycles and for kernels without a centre.
    """

    def __init__(
        self,
        channels: int = 64,
        layers: int = 30,
        cycles: int = 3,
        kernel: int = 3,
        base: int = 2,
        skip: int | None = None,
        condition: int = 0,
        dropout: float = 0.0,
        residual_scale: float = 0.5**0.5,
        skip_scale: float | None = None,
        condition_bias: bool = False,
    ):
        super().__init__()
        if layers % cycles or kernel % 2 == 0:
            raise UserError(f"{layers} layers, kernel {kernel}: choose a multiple of {cycles} cycles and an odd kernel")
        self.residual_scale = residual_scale
        self.skip_scale = layers**-0.5 if skip_scale is None else skip_scale
        dilations = [base ** (i % (layers // cycles)) for i in range(layers)]
        self.receptive_field = 1 + (kernel - 1) * sum(dilations)
        self.layers = nn.ModuleList(
            GatedLayer(channels, skip or channels, kernel, dilation, condition, dropout, i < layers - 1, condition_bias)
            for i, dilation in enumerate(dilations)
        )

    def forward(self, x: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """condition [batch, condition, time]; mask [batch, time]: padding is zeroed before each layer and last."""
        keep = None if mask is None else mask[:, None].to(x.dtype)
        total: Tensor | float = 0.0
        for layer in self.layers:
            x, skip = layer(x if keep is None else x * keep, condition, self.residual_scale)
            total = total + skip
        total = total * self.skip_scale
        return total if keep is None else total * keep


def normed(module: nn.Module) -> nn.Module:
    """``module`` with weight norm (arXiv 1602.07868) on all its convolutions, transposed ones too."""
    for part in module.modules():
        if isinstance(part, nn.Conv1d | nn.ConvTranspose1d) and not parametrize.is_parametrized(part, "weight"):
            parametrizations.weight_norm(part)
    return module


def fold(module: nn.Module) -> nn.Module:
    """``module`` without weight norm, computing the same; once is enough, twice does no harm."""
    for part in module.modules():
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight")
    return module
