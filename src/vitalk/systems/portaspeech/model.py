"""PortaSpeech: linguistic encoder, variational generator, and a flow that sharpens what it makes."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import masked_mean
from vitalk.speech.acoustic.flows import Glow
from vitalk.speech.acoustic.gated import fold
from vitalk.speech.acoustic.noise import Draw
from vitalk.speech.acoustic.ssim import ssim

from .generator import Generator, Variational
from .linguistic import Factor, Linguistic, Reading

LOG_2PI = 1.8378770664093453


@dataclass(frozen=True)
class PostNet:
    """Sizes of the post-net: see ``Glow``. temperature: deviation of the noise that it begins with when it speaks."""

    dim: int = 192
    steps: int = 12
    layers: int = 3
    share: int = 4
    temperature: float = 0.8


@dataclass
class Output:
    """What a pass gives. Padding is zero everywhere.

    mel: log-mel [batch, mels, frames], the post-net's, or the coarse one where it was left out. mel_coarse: the
    variational generator's. mel_lengths: frames, int64 [batch], multiples of four. durations: frames of each symbol,
    int64 [batch, text]. reading: the rest of what is known about the text.
    """

    mel: Tensor
    mel_coarse: Tensor
    mel_lengths: Tensor
    durations: Tensor
    reading: Reading


class PortaSpeech(nn.Module):
    """PortaSpeech (arXiv 2109.15166): words last as long as predicted, symbols share them out, mels are drawn.

    n_symbols: of the text, padding included. mels: bands, a multiple of four. dim: width of the linguistic encoder.
    heads, depth, hidden, kernel: of the phoneme encoder; the word encoder has ``word_depth`` blocks of the same kind.
    variational, postnet: sizes; recipes may give their fields as dicts. speakers: number of voices, 0 for one alone.
    """

    def __init__(
        self,
        n_symbols: int,
        mels: int = 80,
        dim: int = 192,
        heads: int = 2,
        depth: int = 4,
        word_depth: int = 4,
        hidden: int = 768,
        kernel: int = 5,
        variational: Variational | dict[str, Any] = Variational(),
        postnet: PostNet | dict[str, Any] = PostNet(),
        speakers: int = 0,
    ):
        super().__init__()
        p = PostNet(**postnet) if isinstance(postnet, dict) else postnet
        sizes = Variational(**variational) if isinstance(variational, dict) else variational
        self.temperature = p.temperature
        self.linguistic = Linguistic(n_symbols, dim, heads, depth, word_depth, hidden, kernel, speakers)
        self.generator = Generator(mels, dim, sizes)
        self.postnet = Glow(mels, p.dim, p.steps, p.layers, condition=mels + dim, share=p.share)

    def forward(
        self,
        ids: Tensor,
        text_lengths: Tensor | None = None,
        durations: Tensor | None = None,
        speaker: Tensor | None = None,
        speed: Factor = 1.0,
        words: Tensor | None = None,
        postnet: bool = True,
        temperature: float | None = None,
        draw: Draw | None = None,
    ) -> Output:
        """Symbols ids [batch, text] and their lengths [batch] (all of the width without them) -> ``Output``.

        durations [batch, text] in frames: used, summed over words, in place of the predictions. speaker: ids [batch].
        speed: multiplies the tempo; a number, or a tensor that fits [batch, words]. words: of each symbol its word,
        int64 [batch, text] from 0, by default what stands between spaces and punctuation; with one word a symbol the
        alignment is hard, the paper's ablation. postnet: False gives the coarse mel. temperature: the model's own by
        default, 0 for the most likely mel. draw: makes normal noise of a shape, torch's generator by default.
        Raises UserError for empty text and for arguments whose shapes or whose presence do not fit the model.
        """
        reading = self.linguistic(ids, text_lengths, durations, speaker, speed, words)
        draw = draw or (lambda shape: torch.randn(shape, device=reading.condition.device))
        z = self.generator.sample(reading.condition, draw, reading.padding)
        coarse = self.generator.decode(z, reading.condition, reading.padding)
        mel = self.sharpen(coarse, reading, draw, temperature) if postnet else coarse
        return Output(mel, coarse, reading.frame_mask.sum(1), reading.durations, reading)

    def sharpen(self, coarse: Tensor, reading: Reading, draw: Draw, temperature: float | None = None) -> Tensor:
        """What the post-net makes of a coarse mel [batch, mels, frames]; see ``forward``."""
        noise = draw(tuple(coarse.shape)) * (self.temperature if temperature is None else temperature)
        return self.postnet.inverse(noise, torch.cat([coarse, reading.condition], 1), reading.padding)

    def reconstruct(self, reading: Reading, mel: Tensor, draw: Draw | None = None) -> tuple[Tensor, Tensor]:
        """(coarse mel by way of the posterior, KL divergence), the target mel fitted by ``fitted``."""
        mean, logs = self.generator.encode(mel, reading.condition, reading.padding)
        noise = torch.randn_like(mean) if draw is None else draw(tuple(mean.shape))
        z, divergence = self.generator.divergence(mean, logs, noise, reading.condition, reading.padding)
        return self.generator.decode(z, reading.condition, reading.padding), divergence

    def losses(
        self, reading: Reading, mel: Tensor, floor: float = 0.0, durations: Literal["l1", "mse"] = "l1"
    ) -> dict[str, Tensor]:
        """Losses of the first stage, each a mean over what is no padding.

        mel: the target [batch, mels, frames]; floor: its least value, see ``ssim``. "mel": L1. "ssim": 1 less the
        structural similarity. "kl": nats per channel and step. "duration": distance of log(frames + 1) of words,
        absolute as in the release or squared as in the paper. "sentence": absolute distance of whole utterances, in
        frames, which the release weighs with 0.
        """
        mel, mask = fitted(mel, reading), reading.frame_mask
        coarse, divergence = self.reconstruct(reading, mel)
        off = (reading.predicted + 1).log() - (reading.asked.float() + 1).log()
        return {
            "mel": masked_mean((coarse - mel).abs(), mask[:, None]),
            "ssim": 1 - masked_mean(ssim(coarse, mel, mask, floor), mask[:, None]),
            "kl": divergence,
            "duration": masked_mean(off.square() if durations == "mse" else off.abs(), reading.word_mask),
            "sentence": (reading.predicted.sum(1) - reading.asked.sum(1)).abs().mean(),
        }

    def likelihood_loss(self, coarse: Tensor, reading: Reading, mel: Tensor) -> Tensor:
        """Loss of the second stage: negative log-likelihood of the fitted target mel in nats per point.

        coarse: what the post-net sharpens. Neither it nor the text learns by this.
        """
        condition = torch.cat([coarse, reading.condition], 1).detach()
        noise, gained = self.postnet(mel, condition, reading.padding)
        points = reading.frame_mask.sum() * mel.shape[1]
        # Each item's own determinant: in the release they are divided by the lengths of all items, crosswise.
        return (noise.square().sum() / 2 - gained.sum()) / points + LOG_2PI / 2

    def fold(self) -> "PortaSpeech":
        """Take weight norm off and keep the inverses of the post-net's convolutions, for inference."""
        self.postnet.fold()
        return fold(self)


def fitted(mel: Tensor, reading: Reading) -> Tensor:
    """A target mel [batch, mels, frames] as long as the reading, zero in its padding.

    Raises UserError where it is not as long as the durations say.
    """
    frames = reading.frame_mask.shape[1]
    if not frames <= mel.shape[2] < frames + 4:
        raise UserError(
            f"a mel of {mel.shape[2]} frames does not fit the durations, which make {frames}; crop it to their sum"
        )
    return mel[..., :frames].masked_fill(~reading.frame_mask[:, None], 0.0)
