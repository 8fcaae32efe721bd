"""The post-net of Tacotron 2 (arXiv 1712.05884, section 2.2): a residual that sharpens a predicted spectrogram."""

from itertools import pairwise

from torch import Tensor, nn


class PostNet(nn.Module):
    """Convolutions with batch norm and tanh, no tanh at the last: mel [batch, mels, frames] -> the refined mel.

    hidden: channels between; layers: convolutions in all; kernel: frames; dropout: behind each of them.
    """

    def __init__(self, mels: int = 80, hidden: int = 512, layers: int = 5, kernel: int = 5, dropout: float = 0.5):
        super().__init__()
        widths = [mels] + [hidden] * (layers - 1) + [mels]
        self.convs = nn.ModuleList(nn.Conv1d(a, b, kernel, padding=kernel // 2) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths[1:])
        self.dropout = nn.Dropout(dropout)

    def forward(self, mel: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, frames]: True where there is something; padding is zeroed before every convolution."""
        x, last = mel, len(self.convs) - 1
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x if mask is None else x.masked_fill(~mask[:, None], 0.0)))
            x = self.dropout(x.tanh() if i < last else x)
        return mel + x
