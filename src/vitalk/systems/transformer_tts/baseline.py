"""What Transformer TTS replaces: Tacotron 2 (arXiv 1712.05884), as a measure of the time that a training step takes."""

import torch
from torch import Tensor, nn

from .layers import DecoderPrenet, EncoderPrenet


class LocationAttention(nn.Module):
    """Location-sensitive attention (arXiv 1506.07503): what was looked at before tells where to look next."""

    def __init__(self, units: int, dim: int, hidden: int = 128, filters: int = 32, kernel: int = 31):
        super().__init__()
        self.query, self.keys = nn.Linear(units, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.conv = nn.Conv1d(2, filters, kernel, padding=kernel // 2, bias=False)
        self.place, self.score = nn.Linear(filters, hidden, bias=False), nn.Linear(hidden, 1)

    def forward(self, query: Tensor, keys: Tensor, memory: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """query [batch, units], keys, memory [batch, text, ...], seen [batch, 2, text] -> context, weights."""
        place = self.place(self.conv(seen).transpose(1, 2))
        weights = self.score((self.query(query)[:, None] + keys + place).tanh())[..., 0].softmax(-1)
        return (weights[:, None] @ memory)[:, 0], weights


class Tacotron(nn.Module):
    """Tacotron 2 without post-net: (ids, mel) -> the mel and stop logits, both step after step.

    n_symbols: of the text. mels: bands. dim: width of the encoder, 512 in the paper; the two LSTM layers of the decoder
    have twice that. The pre-nets are those of Transformer TTS, which took them from here.
    """

    def __init__(self, n_symbols: int, mels: int = 80, dim: int = 512):
        super().__init__()
        units = 2 * dim
        self.text = EncoderPrenet(n_symbols, dim, dim)
        self.encoder = nn.LSTM(dim, dim // 2, batch_first=True, bidirectional=True)
        self.prenet = DecoderPrenet(mels, (256,), 256)
        self.attention = LocationAttention(units, dim)
        self.first, self.second = nn.LSTMCell(256 + dim, units), nn.LSTMCell(units + dim, units)
        self.head = nn.Linear(units + dim, mels + 1)

    def forward(self, ids: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        """ids [batch, text], true mel [batch, mels, frames] -> [batch, mels, frames], [batch, frames]."""
        memory, _ = self.encoder(self.text(ids))
        keys = self.attention.keys(memory)
        told = self.prenet(torch.cat([mel.new_zeros(*mel.shape[:2], 1), mel[:, :, :-1]], 2).transpose(1, 2))
        context = memory.new_zeros(len(ids), memory.shape[2])
        weights = total = memory.new_zeros(memory.shape[:2])
        first = second = None
        made = []
        for frame in told.unbind(1):
            first = self.first(torch.cat([frame, context], 1), first)
            context, weights = self.attention(first[0], keys, memory, torch.stack([weights, total], 1))
            total = total + weights
            second = self.second(torch.cat([first[0], context], 1), second)
            made.append(self.head(torch.cat([second[0], context], 1)))
        out = torch.stack(made, 2)
        return out[:, :-1], out[:, -1]
