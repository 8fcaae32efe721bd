"""The post-net of Tacotron 2 (arXiv 1712.05884, section 2.2): a residual that sharpens a predicted spectrogram."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class PostNet(nn.Module):
    """Convolutions with batch norm and tanh, no tanh at the last: mel [batch, mels, frames] -> the refined mel.

    hidden: channels between; layers: convolutions in all; kernel: frames; dropout: behind each of them. causal: frames
    see those before alone, and the last convolution has neither batch norm nor dropout, as in
    soobinseo/Transformer-TTS.
    """

    def __init__(
        self,
        mels: int = 80,
        hidden: int = 512,
        layers: int = 5,
        kernel: int = 5,
        dropout: float = 0.5,
        causal: bool = False,
    ):
        super().__init__()
        widths = [mels] + [hidden] * (layers - 1) + [mels]
        self.before = kernel - 1 if causal else 0
        around = 0 if causal else kernel // 2
        self.convs = nn.ModuleList(nn.Conv1d(a, b, kernel, padding=around) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in (widths[1:-1] if causal else widths[1:]))
        self.dropout = nn.Dropout(dropout)

    def forward(self, mel: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, frames]: True where there is something; padding is zeroed before every convolution."""
        x, last = mel, len(self.convs) - 1
        for i, conv in enumerate(self.convs):
            x = x if mask is None else x.masked_fill(~mask[:, None], 0.0)
            x = conv(F.pad(x, (self.before, 0)) if self.before else x)
            if i < len(self.norms):
                x = self.norms[i](x)
                x = self.dropout(x.tanh() if i < last else x)
        return mel + x
