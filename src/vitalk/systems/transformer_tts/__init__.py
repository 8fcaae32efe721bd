"""Transformer TTS: speech frame by frame, with attention in place of Tacotron 2's recurrent layers.

Li et al., "Neural Speech Synthesis with Transformer Network", AAAI 2019, arXiv 1809.08895.

Convolutions and a Transformer encoder read the symbols; a Transformer decoder makes one mel frame after the other, told
the frames before, and says when it has come to the end; a post-net sharpens the result. Training sees all frames at
once, speaking takes one step a frame. It is the measure of quality and the teacher of ``vitalk.systems.fastspeech``.

    vitalk train transformer-tts --data PATH                 # presets tiny, cpu, paper, teacher
    vitalk speak "Hello." --voice runs/transformer-tts-cpu -o hello.wav

    >>> from vitalk.systems.transformer_tts import losses, transformer_tts
    >>> model = transformer_tts(n_symbols=320)
    >>> out = model(ids, text_lengths, mel, mel_lengths)  # training: every frame is told the true ones before
    >>> loss = sum(losses(out, mel).values())
    >>> out = model.eval()(ids, text_lengths)             # speaking: each utterance until its own end
    >>> out.mel, out.durations, out.stopped

``transformer_tts`` is the paper's model, ``transformer_tts_teacher`` FastSpeech's, ``transformer_tts_fs2`` the baseline
of FastSpeech 2, ``transformer_tts_soobinseo`` the best-known reimplementation, whose checkpoints load by
``from_soobinseo``, and ``transformer_tts_small`` ours for one voice on a plain CPU.

Speaking keeps keys and values of the frames before in room taken at the start, so a step costs what it adds. Durations
are not inputs here: ``alignment.durations_from`` reads them out of the attention afterwards, so neither tempo nor pitch
nor energy can be told, and asking for them is refused. The steps end where the model says so, and no graph
can be exported: it speaks in torch.

(unconfirmed) and ours: the feed-forward width of 2048; dropout of the decoder's pre-net while speaking, here drawn from
a seed and the same for all utterances of a batch; squared mel errors, as in Tacotron 2; two or more frames a step
(``frames_per_step``); norms first (``norm="pre"``) for small batches; the guided attention loss for small data
(arXiv 1710.08969) on half of the heads of the last layers; speakers, whose vectors are added to the encoding; the bound
of ten frames a symbol where no end is found. Different from common code: batch norm in front of the encoder learns from
symbols alone, not from padding; masks are boolean, so that half precision cannot overflow.
"""

from .alignment import durations_from, focus_rates, guided_attention_loss
from .checkpoint import from_soobinseo
from .layers import Layers
from .losses import losses
from .model import Output, Refinement, TransformerTTS
from .variants import (
    transformer_tts,
    transformer_tts_fs2,
    transformer_tts_small,
    transformer_tts_soobinseo,
    transformer_tts_teacher,
)

__all__ = [
    "Layers",
    "Output",
    "Refinement",
    "TransformerTTS",
    "durations_from",
    "focus_rates",
    "from_soobinseo",
    "guided_attention_loss",
    "losses",
    "transformer_tts",
    "transformer_tts_fs2",
    "transformer_tts_small",
    "transformer_tts_soobinseo",
    "transformer_tts_teacher",
]
