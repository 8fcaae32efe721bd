"""An aligner that learns which frames belong to which symbol, with nothing but the pairs of text and speech.

"One TTS Alignment to Rule Them All" (arXiv 2108.10447), in the form that RAD-TTS and ZMM-TTS released. Here
``text`` are symbols, ``frames`` those of the mel spectrogram, and attention is [batch, frames, text].
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .search import Backend, Ties, maximum_path

MASKED = -1e4  # a log-probability whose exponential is 0; minus infinity would give NaN gradients in the CTC loss


class Aligner(nn.Module):
    """Soft attention of frames over symbols from the distances of two convolutional encoders.

    text_dim: width of the text embeddings; n_mels: of the spectrogram; dim: of the space where both meet.
    temperature: what distances are multiplied by. The paper writes an L2 distance; as in its release it is the
    squared one.
    """

    def __init__(self, text_dim: int, n_mels: int = 80, dim: int = 80, temperature: float = 0.0005):
        super().__init__()
        self.temperature = temperature
        self.key = nn.Sequential(
            nn.Conv1d(text_dim, 2 * text_dim, 3, padding=1), nn.ReLU(), nn.Conv1d(2 * text_dim, dim, 1)
        )
        self.query = nn.Sequential(
            nn.Conv1d(n_mels, 2 * n_mels, 3, padding=1), nn.ReLU(),
            nn.Conv1d(2 * n_mels, n_mels, 1), nn.ReLU(), nn.Conv1d(n_mels, dim, 1),
        )  # fmt: skip

    def forward(
        self,
        text: Tensor,
        mel: Tensor,
        text_mask: Tensor | None = None,
        mel_mask: Tensor | None = None,
        prior: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(attention, log-probabilities), both [batch, frames, text].

        text: embeddings [batch, text, text_dim]. mel: [batch, mels, frames]. text_mask, mel_mask: bool, True where
        there is something; padding then has no influence on the rest, gets the attention 0, and padded symbols the
        log-probability ``MASKED``. prior: [batch, frames, text], see ``priors``. Without a prior the
        log-probabilities are scores that ``ForwardSumLoss`` has yet to normalise.
        """
        keys = text.transpose(1, 2)
        if text_mask is not None:
            keys = keys * text_mask[:, None]
        if mel_mask is not None:
            mel = mel * mel_mask[:, None]
        logprob = -self.temperature * squared_distance(self.query(mel), self.key(keys))
        if prior is not None:
            logprob = _masked(logprob, text_mask).log_softmax(2) + (prior.to(logprob) + 1e-8).log()
        logprob = _masked(logprob, text_mask)
        return soft_attention(logprob, text_mask, mel_mask), logprob


def squared_distance(queries: Tensor, keys: Tensor) -> Tensor:
    """Squared L2 distances of [batch, dim, frames] and [batch, dim, text] -> [batch, frames, text], in float32."""
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = queries.float(), keys.float()
        norms = queries.square().sum(1)[:, :, None] + keys.square().sum(1)[:, None]
        return torch.baddbmm(norms, queries.transpose(1, 2), keys, alpha=-2).clamp(min=0)


def soft_attention(logprob: Tensor, text_mask: Tensor | None = None, mel_mask: Tensor | None = None) -> Tensor:
    """Softmax over the symbols of [batch, frames, text]; 0 for padded symbols and in padded frames."""
    attn = _masked(logprob, text_mask).softmax(2)
    return attn if mel_mask is None else attn * mel_mask[:, :, None]


def _masked(logprob: Tensor, text_mask: Tensor | None) -> Tensor:
    return logprob if text_mask is None else logprob.masked_fill(~text_mask[:, None], MASKED)


def beta_binomial_prior(frames: int, text: int, scale: float = 1.0) -> Tensor:
    """Beta-binomial prior around the diagonal, float32 [frames, text]; kept for each pair of lengths.

    Row i of M (from 1) is the beta-binomial distribution of ``text`` trials with alpha = scale i and
    beta = scale (M + 1 - i), without its last value (arXiv 2108.10447; as released: rows sum to a little
    below one). A larger scale makes the diagonal narrower.
    """
    return _prior(frames, text, scale)


@lru_cache(maxsize=1024)
def _prior(frames: int, text: int, scale: float) -> Tensor:
    k = torch.arange(text, dtype=torch.float64)
    i = torch.arange(1, frames + 1, dtype=torch.float64)[:, None]
    n, a, b = torch.tensor(text, dtype=torch.float64), scale * i, scale * (frames + 1 - i)
    choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return (choose + _log_beta(k + a, n - k + b) - _log_beta(a, b)).exp().float()


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def priors(text_lengths: Tensor, frame_lengths: Tensor, scale: float = 1.0) -> Tensor:
    """``beta_binomial_prior`` of every item, [batch, frames, text] on the device of the lengths; 0 in the padding."""
    sizes = list(zip(frame_lengths.tolist(), text_lengths.tolist(), strict=True))
    out = torch.zeros(len(sizes), max(frames for frames, _ in sizes), max(text for _, text in sizes))
    for item, (frames, text) in zip(out, sizes, strict=True):
        item[:frames, :text] = beta_binomial_prior(frames, text, scale)
    return out.to(text_lengths.device)


class ForwardSumLoss(nn.Module):
    """Negative log-likelihood of the text, summed over all monotonic alignments (arXiv 2108.10447).

    CTC over the whole batch in one call, where every symbol of an item is a class of its own. blank: logit of the
    blank, which stands for a frame without symbol. Each item is divided by its symbols, then the mean is taken.
    """

    def __init__(self, blank: float = -1.0):
        super().__init__()
        self.blank = blank

    def forward(self, logprob: Tensor, text_lengths: Tensor, frame_lengths: Tensor) -> Tensor:
        """logprob [batch, frames, text], lengths [batch] -> a scalar.

        Items with more symbols than frames have no alignment and count 0; ``check_lengths`` finds them.
        """
        text = logprob.shape[2]
        symbol = torch.arange(text + 1, device=logprob.device)  # 0 is the blank
        inside = symbol <= text_lengths[:, None]
        with torch.autocast(logprob.device.type, enabled=False):
            logits = F.pad(logprob.float(), (1, 0), value=self.blank).masked_fill(~inside[:, None], MASKED)
            return F.ctc_loss(
                logits.log_softmax(2).transpose(0, 1), symbol[1:].expand(len(logits), text),
                frame_lengths, text_lengths, zero_infinity=True,
            )  # fmt: skip


def binarisation_loss(hard: Tensor, attn: Tensor) -> Tensor:
    """Mean of -log(soft attention) along the hard path (arXiv 2108.10447).

    hard: bool [batch, frames, text]. attn: [batch, frames, text]; values below 1e-12 count as that.
    """
    return -attn.float()[hard].clamp(min=1e-12).log().mean()


def hard_durations(
    logprob: Tensor, text_lengths: Tensor, frame_lengths: Tensor, ties: Ties = "diagonal", backend: Backend = "auto"
) -> Tensor:
    """Durations int64 [batch, text] of the best monotonic path through logprob [batch, frames, text]."""
    return maximum_path(logprob.log_softmax(2).transpose(1, 2), text_lengths, frame_lengths, ties, backend)


def mask_of(lengths: Tensor, most: int | None = None) -> Tensor:
    """lengths [batch] -> bool [batch, most or the longest], True inside."""
    most = int(lengths.max()) if most is None else most
    return torch.arange(most, device=lengths.device) < lengths[:, None]
