"""Transformer TTS: symbols to spectrogram, frame by frame."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import length_mask, symbol_mask
from vitalk.speech.acoustic.postnet import PostNet
from vitalk.speech.acoustic.speakers import add_speaker

from .alignment import durations_from
from .layers import DecoderLayer, DecoderPrenet, EncoderLayer, EncoderPrenet, Layers, ScaledPositions

PER_SYMBOL, LEAST = 10, 100  # frames: what is made for each symbol and in all, at most, where nothing stops it


@dataclass(frozen=True)
class Refinement:
    """Sizes of the post-net; the fields are arguments of ``PostNet``.

    A causal one sees the frames of a step side by side, as in soobinseo/Transformer-TTS.
    """

    hidden: int = 512
    layers: int = 5
    kernel: int = 5
    dropout: float = 0.5
    causal: bool = False


@dataclass
class Output:
    """What a pass gives. Padding is zero everywhere.

    mel: log-mel [batch, mels, frames], after the post-net where there is one. mel_coarse: before it, else None.
    mel_lengths: frames, int64 [batch]. steps: of the decoder, int64 [batch]. stop: logits of the end [batch, steps].
    maps: attention to the text, [batch, layers, heads, steps, text], of as many of the last layers as were asked for.
    durations: frames that look at each symbol most, in the most focused head, int64 [batch, text], and focus, its
    focus rate [batch]; see ``durations_from``; of free runs, and where the maps of all layers were asked for.
    stopped: whether the model itself found the end, bool [batch]; of free runs.
    text_mask [batch, text], frame_mask [batch, frames]: True where there is something.
    """

    mel: Tensor
    mel_coarse: Tensor | None
    mel_lengths: Tensor
    steps: Tensor
    stop: Tensor
    maps: Tensor | None
    durations: Tensor | None
    focus: Tensor | None
    stopped: Tensor | None
    text_mask: Tensor
    frame_mask: Tensor


class TransformerTTS(nn.Module):
    """Transformer TTS (arXiv 1809.08895): encoder, autoregressive decoder, stop token, post-net.

    n_symbols: of the text, padding included. mels: bands. dim: width of everything. embedding: width of the symbols'
    embedding, by default ``dim``. encoder, decoder: sizes of the two stacks, kernels of the decoder look back only.
    prenet: widths of the decoder's pre-net. prenet_dropout: of both pre-nets. postnet: its sizes, None for none.
    Recipes may give sizes as dicts. frames_per_step: mel frames that the decoder makes at a time, r. norm: "post"
    (paper) or "pre", which needs neither warm-up nor large batches. speakers: number of voices, 0 for one alone.
    scaled: positions are weighted by a number that learns. recentre: pre-nets end around zero, see ``EncoderPrenet``.
    concat: see ``Attention``. first_position: number of the first one.
    """

    def __init__(
        self,
        n_symbols: int,
        mels: int = 80,
        dim: int = 512,
        embedding: int | None = None,
        encoder: Layers | dict = Layers(),
        decoder: Layers | dict = Layers(),
        prenet: tuple[int, ...] = (256, 256),
        prenet_dropout: float = 0.5,
        postnet: Refinement | dict | None = Refinement(),
        frames_per_step: int = 1,
        norm: Literal["post", "pre"] = "post",
        speakers: int = 0,
        scaled: bool = True,
        recentre: bool = True,
        concat: bool = False,
        first_position: int = 0,
    ):
        super().__init__()
        if norm not in ("post", "pre") or frames_per_step < 1:
            raise UserError(f'norm "{norm}", {frames_per_step} frames a step: choose post or pre, and 1 frame or more')
        encoder, decoder, postnet = _sizes(Layers, encoder), _sizes(Layers, decoder), _sizes(Refinement, postnet)
        self.mels, self.r, pre = mels, frames_per_step, norm == "pre"
        self.text = EncoderPrenet(n_symbols, embedding or dim, dim, prenet_dropout, recentre)
        self.prenet = DecoderPrenet(mels, tuple(prenet), dim, prenet_dropout, recentre)
        self.text_positions, self.positions = (ScaledPositions(dim, first_position, scaled) for _ in range(2))
        self.encoder = nn.ModuleList(EncoderLayer(dim, encoder, pre, concat) for _ in range(encoder.depth))
        self.decoder = nn.ModuleList(DecoderLayer(dim, decoder, pre, concat) for _ in range(decoder.depth))
        self.text_norm, self.norm = (nn.LayerNorm(dim) if pre else nn.Identity() for _ in range(2))
        self.head, self.stop = nn.Linear(dim, mels * self.r), nn.Linear(dim, 1)
        self.stacked = postnet is not None and postnet.causal
        self.postnet = PostNet(mels * (self.r if self.stacked else 1), **vars(postnet)) if postnet else None
        self.speakers = nn.Embedding(speakers, dim) if speakers else None

    def forward(
        self,
        ids: Tensor,
        text_lengths: Tensor | None = None,
        mel: Tensor | None = None,
        mel_lengths: Tensor | None = None,
        speaker: Tensor | None = None,
        maps: int = 0,
    ) -> Output:
        """Symbols ids [batch, text], their lengths [batch] (all of the width without them) and speakers [batch].

        mel: log-mel [batch, mels, frames] and its lengths: every frame is made of the true ones before it, as in
        training. Without it the model speaks freely, see ``generate``. maps: of how many of the last layers the
        attention to the text is kept; fused kernels do without it.
        Raises UserError for empty text, speakers that do not fit the model, and mels of other bands.
        """
        if mel is None:
            return self.generate(ids, text_lengths, speaker)
        if mel.ndim != 3 or mel.shape[1] != self.mels or not mel.shape[2]:
            raise UserError(f"a mel of shape {list(mel.shape)} does not fit; give [batch, {self.mels}, frames]")
        memory, mask = self.encode(ids, text_lengths, speaker)
        keys = None if mask is None else mask[:, None, None]
        frames = mel.new_full((len(mel),), mel.shape[2], dtype=torch.int64) if mel_lengths is None else mel_lengths
        x, found = self.positions(self.prenet(self._before(mel))), []
        for left, layer in zip(range(len(self.decoder), 0, -1), self.decoder, strict=True):
            x, seen = layer(x, memory, keys, maps=left <= maps)
            found.append(seen)
        x = self.norm(x)
        kept = torch.stack(found[-maps:], 1) if maps else None
        return self._output(
            self.head(x), self.stop(x)[..., 0], kept, frames, mel.shape[2], ids, mask, maps >= len(self.decoder)
        )  # fmt: skip

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        text_lengths: Tensor | None = None,
        speaker: Tensor | None = None,
        seed: int | None = 0,
        most: int | None = None,
    ) -> Output:
        """Speak freely, each utterance until its own end; arguments as in ``forward``.

        The decoder's pre-net drops units here too, as Tacotron 2's does ((unconfirmed) for this paper): seed decides
        which, the same in all utterances of a batch, so that an utterance gives the same alone; None drops none.
        most: frames at most, by default ten for each symbol and 100 more, a bound of ours.
        """
        memory, mask = self.encode(ids, text_lengths, speaker)
        keys, batch = None if mask is None else mask[:, None, None], len(ids)
        known = ids.new_full((batch,), ids.shape[1]) if text_lengths is None else text_lengths
        bound = (PER_SYMBOL * known + LEAST if most is None else known.new_full((batch,), max(most, 1))) + self.r - 1
        steps = torch.div(bound, self.r, rounding_mode="floor")  # as long as none has ended, the bound
        limit = int(steps.max())
        caches = [layer.start(memory, limit) for layer in self.decoder]
        table = self.positions.table(limit, memory)
        draw = None if seed is None else torch.Generator(ids.device).manual_seed(seed)
        frame, running = memory.new_zeros(batch, 1, self.mels), torch.ones_like(steps, dtype=torch.bool)
        stopped, made, ends, maps = torch.zeros_like(running), [], [], []
        for time in range(limit):
            x, seen = self.prenet(frame, draw) + table[:, time : time + 1], []
            for layer, cache in zip(self.decoder, caches, strict=True):
                x, weights = layer.step(x, cache, time, keys)
                seen.append(weights[:, :, 0])
            x = self.norm(x)
            made.append(self.head(x))
            ends.append(self.stop(x)[:, 0, 0])
            maps.append(torch.stack(seen, 1))
            frame = made[-1][..., -self.mels :]
            over = running & (ends[-1] > 0)
            stopped, steps = stopped | over, torch.where(over, time + 1, steps)
            running = running & ~over & (steps > time + 1)
            if not running.any():
                break
        frames = steps * self.r
        return self._output(
            torch.cat(made, 1), torch.stack(ends, 1), torch.stack(maps, 3), frames, int(frames.max()), ids, mask, True,
            stopped,
        )  # fmt: skip

    def encode(
        self, ids: Tensor, text_lengths: Tensor | None = None, speaker: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Symbols -> memory [batch, text, dim] and its mask, None where nothing is padding."""
        mask = symbol_mask(ids, text_lengths)
        x = self.text_positions(self.text(ids, mask))
        x = x if mask is None else x.masked_fill(~mask[..., None], 0.0)
        for layer in self.encoder:
            x = layer(x, mask)
        return add_speaker(self.text_norm(x), self.speakers, speaker), mask

    def _before(self, mel: Tensor) -> Tensor:
        """What the decoder is given at each step: the last frame of the step before, [batch, steps, mels]."""
        steps = -(-mel.shape[2] // self.r)
        last = mel[:, :, self.r - 1 :: self.r][:, :, : steps - 1]
        return torch.cat([mel.new_zeros(*mel.shape[:2], 1), last], 2).transpose(1, 2)

    def _output(
        self, made: Tensor, stop: Tensor, maps: Tensor | None, frames: Tensor, width: int, ids: Tensor,
        text_mask: Tensor | None, every: bool, stopped: Tensor | None = None,
    ) -> Output:  # fmt: skip
        """Steps [batch, steps, r * mels] -> ``Output`` of ``width`` frames; every: the maps are those of all layers."""
        steps = torch.div(frames + self.r - 1, self.r, rounding_mode="floor")
        mask = length_mask(frames, width)
        shown = length_mask(steps, stop.shape[1])
        coarse = self._frames(made)[:, :, :width].masked_fill(~mask[:, None], 0.0)
        mel, durations, focus = coarse, None, None
        if self.stacked:
            inside = None if len(mask) == 1 else shown
            mel = self._frames(self.postnet(made.transpose(1, 2), inside).transpose(1, 2))[:, :, :width]
        elif self.postnet is not None:
            mel = self.postnet(coarse, None if len(mask) == 1 else mask)
        if maps is not None:
            maps = maps.masked_fill(~shown[:, None, None, :, None], 0.0)
            durations, focus = durations_from(maps, steps, frames, self.r) if every else (None, None)
        text_mask = torch.ones_like(ids, dtype=torch.bool) if text_mask is None else text_mask
        return Output(
            mel.masked_fill(~mask[:, None], 0.0), None if self.postnet is None else coarse, frames, steps,
            stop.masked_fill(~shown, 0.0), maps, durations, focus, stopped, text_mask, mask,
        )  # fmt: skip

    def _frames(self, made: Tensor) -> Tensor:
        """[batch, steps, r * mels] -> [batch, mels, steps * r]."""
        return made.unflatten(-1, (self.r, self.mels)).flatten(1, 2).transpose(1, 2)


def _sizes(kind: type, given: Any) -> Any:
    return kind(**given) if isinstance(given, dict) else given
