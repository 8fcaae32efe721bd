"""What a recording tells beside its text: one vector of the utterance, and the mel of each phoneme."""

from itertools import pairwise

from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import length_mask, masked
from vitalk.speech.acoustic.regulator import frame_index


class UtteranceEncoder(nn.Module):
    """The utterance level (arXiv 2103.00993, section 2.1): mel [batch, mels, frames] -> vectors [batch, dim].

    [convolution with a stride, ReLU, layer norm, dropout] x layers, and the mean over time. kernel, stride: frames.
    The mean and every convolution leave padding out, so that an utterance gives the same alone and in a batch; public
    reimplementations average over it.
    Raises UserError for kernels without a centre.
    """

    def __init__(
        self, mels: int = 80, dim: int = 256, layers: int = 2, kernel: int = 5, stride: int = 3, dropout: float = 0.5
    ):
        super().__init__()
        if kernel % 2 == 0:
            raise UserError(f"a kernel of {kernel} frames has no centre; choose an odd one")
        widths = [mels] + [dim] * layers
        self.convs = nn.ModuleList(nn.Conv1d(a, b, kernel, stride, kernel // 2) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """lengths: frames [batch]; all of the width without them."""
        x = mel.transpose(1, 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            mask = None if lengths is None else length_mask(lengths, x.shape[1])
            x = conv(masked(x, mask).transpose(1, 2)).relu().transpose(1, 2)
            x = self.dropout(norm(x))
            lengths = None if lengths is None else (lengths - 1) // conv.stride[0] + 1
        if lengths is None:
            return x.mean(1)
        return masked(x, length_mask(lengths, x.shape[1])).sum(1) / lengths[:, None]


def phoneme_mel(mel: Tensor, durations: Tensor) -> Tensor:
    """The mean of each phoneme's frames: mel [batch, mels, frames] -> [batch, text, mels].

    durations: int64 [batch, text]. Phonemes without a frame get zeros. Raises UserError where the durations do not sum
    to the frames.
    """
    longest = int(durations.sum(1).max())
    if longest != mel.shape[2]:
        raise UserError(f"durations of {longest} frames do not fit a mel of {mel.shape[2]}; crop it, or align again")
    index, mask = frame_index(durations, mel.shape[2])
    frames = masked(mel.transpose(1, 2), mask)
    sums = frames.new_zeros(*durations.shape, mel.shape[1])
    sums = sums.scatter_add(1, index[..., None].expand_as(frames), frames)
    return sums / durations.clamp(min=1)[..., None]
