"""The student: symbols to spectrogram in parallel, with durations in the open."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitalk.speech.acoustic.fft_block import FFTStack, fitting, masked_mean, symbol_mask
from vitalk.speech.acoustic.regulator import Rounding, frames_from_logs, regulate, timed
from vitalk.speech.acoustic.speakers import add_speaker
from vitalk.speech.acoustic.variance import VariancePredictor
from vitalk.systems.transformer_tts.layers import Layers
from vitalk.systems.transformer_tts.losses import Distance, mel_distance

BLOCKS = Layers(6, 2, 1536, (3, 3))  # the paper's


@dataclass
class Output:
    """What a pass gives. Padding is zero everywhere.

    mel: log-mel [batch, mels, frames]. mel_lengths: frames, int64 [batch]. log_durations: predicted log(frames + 1)
    [batch, text]. durations: frames used, int64 [batch, text].
    text_mask [batch, text], frame_mask [batch, frames]: True where there is something.
    """

    mel: Tensor
    mel_lengths: Tensor
    log_durations: Tensor
    durations: Tensor
    text_mask: Tensor
    frame_mask: Tensor


class FastSpeech(nn.Module):
    """FastSpeech (arXiv 1905.09263): blocks over the symbols, length regulator, blocks over the frames.

    n_symbols: of the text, padding included. mels: bands. dim: width of everything. encoder, decoder: sizes of the two
    stacks; recipes may give them as dicts. predictor_dropout: of the duration predictor. speakers: number of voices,
    0 for one alone; their vectors are added to the encoding (ours). rounding: of durations, see ``whole_frames``.
    """

    def __init__(
        self,
        n_symbols: int,
        mels: int = 80,
        dim: int = 384,
        encoder: Layers | dict = BLOCKS,
        decoder: Layers | dict = BLOCKS,
        predictor_dropout: float = 0.1,
        speakers: int = 0,
        rounding: Rounding = "each",
    ):
        super().__init__()
        self.rounding = rounding
        self.symbols = nn.Embedding(n_symbols, dim)
        self.encoder, self.decoder = (FFTStack(dim=dim, **_sizes(stack)) for stack in (encoder, decoder))
        self.duration = VariancePredictor(dim, dim, dropout=predictor_dropout)
        self.head = nn.Linear(dim, mels)
        self.speakers = nn.Embedding(speakers, dim) if speakers else None

    def forward(
        self,
        ids: Tensor,
        text_lengths: Tensor | None = None,
        durations: Tensor | None = None,
        speaker: Tensor | None = None,
        speed: float | Tensor = 1.0,
    ) -> Output:
        """Symbols ids [batch, text], their lengths [batch] (all of the width without them) and speakers [batch].

        durations: [batch, text] in frames, used in place of the prediction, as in training. speed: 2 halves every
        duration, and with them the time that speech takes; a number or a tensor that fits [batch, text], by which
        pauses alone can be made longer: ``torch.where(ids == space, 0.5, 1.0)``.
        Raises UserError for empty text, durations of another shape, and speakers that do not fit the model.
        """
        mask = symbol_mask(ids, text_lengths)
        hidden = add_speaker(self.encoder(self.symbols(ids), mask), self.speakers, speaker)
        logs = self.duration(hidden, mask)[..., 0].float()
        if durations is None:
            durations = frames_from_logs(logs, mask, speed, self.rounding)
        else:
            durations = timed(fitting("durations", durations, hidden), mask, speed, self.rounding)
        expanded, frame_mask = regulate(hidden, durations)
        inside = None if len(ids) == 1 else frame_mask  # an item alone is as long as its batch
        mel = self.head(self.decoder(expanded, inside)).transpose(1, 2)
        mel = mel if inside is None else mel.masked_fill(~inside[:, None], 0.0)
        text_mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        return Output(mel, durations.sum(1), logs, durations, text_mask, frame_mask)


def losses(output: Output, mel: Tensor, durations: Tensor, distance: Distance = "l2") -> dict[str, Tensor]:
    """The paper's losses, each a mean over what is no padding; training adds them up.

    mel: error against log-mel [batch, mels, frames], squared in the paper, see ``mel_distance``. duration: squared
    error of log(frames + 1) against durations [batch, text].
    Raises UserError where a spectrogram is not as long as the durations say.
    """
    off = output.log_durations - durations.float().log1p()
    return {
        "mel": mel_distance(output.mel, mel, output.frame_mask, distance),
        "duration": masked_mean(off.square(), output.text_mask),
    }


def fastspeech(n_symbols: int, **options: Any) -> FastSpeech:
    """The paper's size: 6 + 6 blocks of width 384, 2 heads; 50.5 M parameters for 51 symbols.

    The paper's 30.1 M ((unconfirmed)) do not follow from its sizes, which make 4.13 M a block. Its ablation with dense
    layers in place of convolutions is ``Layers(6, 2, 1536, (1, 1))``. options: of ``FastSpeech``.
    """
    return FastSpeech(n_symbols, **options)


def fastspeech_rerun(n_symbols: int, **options: Any) -> FastSpeech:
    """FastSpeech as the FastSpeech 2 paper ran it again (arXiv 2006.04558): 4 + 4 blocks of width 256; 23.5 M."""
    blocks = Layers(4, 2, 1024, (9, 1))
    return FastSpeech(n_symbols, **{"dim": 256, "encoder": blocks, "decoder": blocks, **options})


def fastspeech_small(n_symbols: int, **options: Any) -> FastSpeech:
    """For one voice on a plain CPU: 4 + 4 blocks of width 192 with short kernels; 5.0 M parameters (ours).

    Durations keep their total when they are rounded.
    """
    blocks = Layers(4, 2, 384, (5, 1))
    sizes = {"dim": 192, "encoder": blocks, "decoder": blocks, "predictor_dropout": 0.3, "rounding": "total"}
    return FastSpeech(n_symbols, **{**sizes, **options})


def _sizes(given: Layers | dict) -> dict[str, Any]:
    return vars(Layers(**given) if isinstance(given, dict) else given)
