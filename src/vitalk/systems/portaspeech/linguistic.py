"""The linguistic encoder: hard alignment of words, soft alignment of phonemes within them (arXiv 2109.15166, 3.1)."""

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitalk.nn.precision import full_precision
from vitalk.speech.acoustic.fft_block import fitting, masked, symbol_mask
from vitalk.speech.acoustic.regulator import LONGEST, frame_index, timed, whole_frames
from vitalk.speech.acoustic.relative import RelativeStack
from vitalk.speech.acoustic.speakers import add_speaker
from vitalk.speech.acoustic.variance import VariancePredictor, scale_gradient
from vitalk.speech.text.symbols import PUNCTUATION, SYMBOLS

BLOCK = 4  # frames: the latent sequence has one step for so many, so spectrograms come in whole ones
EPS = 1e-4  # of the layer norms, as in the release

Factor = float | Tensor


@dataclass
class Reading:
    """A text as the generator needs it. Padding is zero everywhere.

    condition: [batch, dim, frames], frames a multiple of ``BLOCK``. attn: of each frame, over the symbols of its word,
    [batch, frames, text]. durations: frames of each symbol as the attention shares them out, int64 [batch, text].
    predicted: frames of each word, [batch, words]. asked: whole ones, told or predicted; word_durations: those used,
    of which up to three of the end are left out so that the sum is a multiple of ``BLOCK``; int64 [batch, words].
    text_mask [batch, text], word_mask [batch, words], frame_mask [batch, frames]: True where there is something.
    """

    condition: Tensor
    attn: Tensor
    durations: Tensor
    predicted: Tensor
    asked: Tensor
    word_durations: Tensor
    text_mask: Tensor
    word_mask: Tensor
    frame_mask: Tensor

    @property
    def padding(self) -> Tensor | None:
        """The mask of frames, None where it hides nothing: an item alone is as long as its batch."""
        return None if len(self.frame_mask) == 1 else self.frame_mask


def word_index(ids: Tensor, gaps: Tensor) -> Tensor:
    """Which word each symbol belongs to, from 0: ids [batch, text], gaps bool [symbols] -> int64 [batch, text].

    Words are runs of symbols that are no gap; spaces and marks between them, and around the utterance, are runs of
    their own, since pauses last as words do. How the paper treats pauses is not known; this is ours.
    """
    gap = gaps[ids].long()
    changes = gap != F.pad(gap, (1, 0))[:, :-1]
    return changes.long().cumsum(1) - gap[:, :1]  # the first is no change


def in_blocks(durations: Tensor) -> Tensor:
    """Whole durations [batch, words] whose sum is a multiple of ``BLOCK``: up to three frames of the end are left out.

    An item that lasts less than one block gets a longer first word instead.
    """
    missing = (BLOCK - durations.sum(1, keepdim=True)).clamp(min=0)
    ends = torch.cat([durations[:, :1] + missing, durations[:, 1:]], 1).cumsum(1)
    ends = ends.minimum(ends[:, -1:] // BLOCK * BLOCK)
    return ends - F.pad(ends, (1, 0))[:, :-1]


def place_within(index: Tensor, sizes: Tensor) -> Tensor:
    """How far each item has come in its word, in (0, 1]: index [batch, items], items of each word [batch, words]."""
    starts = sizes.cumsum(1) - sizes
    place = torch.arange(1, index.shape[1] + 1, device=index.device)
    return (place - starts.gather(1, index)) / sizes.gather(1, index).clamp(min=1)


def sinusoids(place: Tensor, dim: int) -> Tensor:
    """Sines, then cosines of places [batch, items]: [batch, items, dim], dim even.

    The frequencies are those for whole positions, as in the release: of places below 1 only the highest ones tell.
    """
    turn = torch.exp(torch.arange(dim // 2, device=place.device) * (-math.log(10_000) / (dim // 2 - 1)))
    angle = place[..., None].float() * turn
    return torch.cat([angle.sin(), angle.cos()], -1)


class WordAttention(nn.Module):
    """Frames look at the symbols of their own word: [batch, frames, dim] and the map, in which the alignment is.

    Keys and values are symbols, queries are words, both with their place in the word; a residual and one more layer of
    the place are added. One head without biases.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.symbols, self.query, self.residual = (nn.Linear(2 * dim, dim) for _ in range(3))
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.place = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.qkv.weight), nn.init.xavier_uniform_(self.proj.weight)

    def forward(
        self, symbols: Tensor, symbol_place: Tensor, words: Tensor, frame_place: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """symbols [batch, text, dim], words, one a frame, [batch, frames, dim], places [batch, text or frames].

        mask [batch, frames, text]: the symbols of a frame's word; frames without any get zeros.
        """
        dim = symbols.shape[2]
        place = sinusoids(frame_place, dim).to(words.dtype)
        words = torch.cat([words, place], -1)
        told = self.symbols(torch.cat([symbols, sinusoids(symbol_place, dim).to(symbols.dtype)], -1))
        of_q, of_kv = self.qkv.weight.split([dim, 2 * dim])
        k, v = F.linear(told, of_kv).chunk(2, -1)
        q = F.linear(self.query(words), of_q)
        with full_precision(q):
            scores = q.float() @ k.float().transpose(1, 2) * dim**-0.5
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            attn = scores.softmax(-1).masked_fill(~mask, 0.0)
        return self.proj(attn.to(v.dtype) @ v) + self.residual(words) + self.place(place), attn


class Linguistic(nn.Module):
    """Symbols to frames; see ``Reading`` and, for the arguments, ``PortaSpeech``."""

    def __init__(
        self, n_symbols: int, dim: int, heads: int, depth: int, word_depth: int, hidden: int, kernel: int, speakers: int
    ):
        super().__init__()
        self.symbols = nn.Embedding(n_symbols, dim, padding_idx=0)
        nn.init.normal_(self.symbols.weight, std=dim**-0.5)
        gaps = torch.tensor([symbol == " " or symbol in PUNCTUATION for symbol in SYMBOLS])
        self.register_buffer("gaps", F.pad(gaps, (0, max(n_symbols - len(gaps), 0)))[:n_symbols], persistent=False)
        norm = partial(nn.LayerNorm, eps=EPS)
        self.encoder = RelativeStack(depth, dim, heads, hidden, (kernel, 1), norm=norm)
        self.words = RelativeStack(word_depth, dim, heads, dim, (kernel, 1), norm=norm, pre_norm=True)
        self.duration = VariancePredictor(dim, dim, 1, layers=3, kernel=5, dropout=0.2)
        self.attention = WordAttention(dim)
        self.speakers = nn.Embedding(speakers, dim) if speakers else None

    def forward(
        self,
        ids: Tensor,
        text_lengths: Tensor | None = None,
        durations: Tensor | None = None,
        speaker: Tensor | None = None,
        speed: Factor = 1.0,
        words: Tensor | None = None,
    ) -> Reading:
        """See ``PortaSpeech.forward``."""
        hidden, mask = self.encode(ids, text_lengths, speaker)
        words = word_index(ids, self.gaps) if words is None else words
        text_mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        words = words.masked_fill(~text_mask, 0)
        many = (words.max() + 1).item()
        torch._check_value(many >= 1, lambda: "words are counted from 0")
        sizes = ids.new_zeros(len(ids), many).scatter_add(1, words, text_mask.long())
        word_mask = sizes > 0
        pooled = hidden.new_zeros(len(ids), many, hidden.shape[2])
        pooled = pooled.scatter_add(1, words[..., None].expand_as(hidden), hidden) / sizes.clamp(min=1)[..., None]
        encoded = self.words(pooled, None if mask is None else word_mask)
        predicted = self.predict(hidden, mask, words, many)
        asked = predicted
        if durations is not None:
            asked = _summed(fitting("durations", durations, ids), words, text_mask, many)
        asked = timed(asked, word_mask, speed)
        used = in_blocks(asked)
        frames = BLOCK * (used.sum(1) // BLOCK).max().item()
        torch._check_value(frames >= BLOCK, lambda: "durations without a frame make no sound; align again")
        index, frame_mask = frame_index(used, frames)
        same = (words[:, None] == index[..., None]) & text_mask[:, None] & frame_mask[..., None]
        expanded = encoded.gather(1, index[..., None].expand(-1, -1, encoded.shape[2]))
        said, attn = self.attention(hidden, place_within(words, sizes), expanded, place_within(index, used), same)
        condition = masked(said, frame_mask).transpose(1, 2)
        shared = whole_frames(attn.sum(1), "total")
        return Reading(condition, attn, shared, predicted, asked, used, text_mask, word_mask, frame_mask)

    def encode(self, ids: Tensor, text_lengths: Tensor | None, speaker: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Symbols -> hidden sequence [batch, text, dim] and its mask, None where nothing is padding."""
        mask = symbol_mask(ids, text_lengths)
        hidden = self.encoder(self.symbols(ids) * self.symbols.embedding_dim**0.5, mask)
        return masked(add_speaker(hidden, self.speakers, speaker), mask), mask

    def predict(self, hidden: Tensor, mask: Tensor | None, words: Tensor, many: int) -> Tensor:
        """Frames of each word [batch, words]: those of its symbols, summed.

        The loss sends a tenth of its gradient into the encoder (the release; the paper does not say).
        """
        frames = F.softplus(self.duration(scale_gradient(hidden, 0.1), mask)[..., 0].float()).clamp(max=LONGEST)
        return _summed(frames, words, torch.ones_like(words, dtype=torch.bool) if mask is None else mask, many)


def _summed(values: Tensor, words: Tensor, mask: Tensor, many: int) -> Tensor:
    return values.new_zeros(len(values), many).scatter_add(1, words, values.masked_fill(~mask, 0))
