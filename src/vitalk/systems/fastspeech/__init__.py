"""FastSpeech: text to speech in parallel, taught by a model that speaks frame by frame.

Ren et al., "FastSpeech: Fast, Robust and Controllable Text to Speech", NeurIPS 2019, arXiv 1905.09263.

Feed-forward Transformer blocks read the symbols, a predictor says how many frames each lasts, the length regulator
repeats its state so often, and more blocks make all frames of the log-mel spectrogram at once. Durations are read out
of the attention of an autoregressive teacher, and the teacher's own mels are what the student learns to make. The
teacher is ``vitalk.systems.transformer_tts``, on which this system stands, as its paper does: layers, the attention's
durations, and losses are that one's.

    vitalk train transformer-tts --preset cpu --data PATH
    vitalk train fastspeech --preset cpu --data PATH --data.init_args.teacher=runs/transformer-tts-cpu/model.safetensors
    vitalk speak "Hello." --voice runs/fastspeech-cpu --speed 0.8 -o hello.wav

    >>> from vitalk.systems.fastspeech import fastspeech, losses
    >>> model = fastspeech(n_symbols=320)
    >>> out = model(ids, text_lengths, durations)      # training: durations are known
    >>> loss = sum(losses(out, mel, durations).values())
    >>> mel = model.eval()(ids, speed=1.2).mel         # [batch, mels, frames]
    >>> mel = model(ids, speed=torch.where(ids == space, 0.5, 1.0)).mel  # pauses twice as long

``fastspeech`` is the paper's model, ``fastspeech_rerun`` that of the FastSpeech 2 paper's comparison, and
``fastspeech_small`` ours for one voice on a plain CPU. All export with a vocoder as one ONNX file by ``vitalk export``.

``TaughtSpeech`` is the data of a taught student: when it is set up, the teacher speaks every utterance, told the
recording's frames or freely (``free``, as in the paper), and what it makes is kept: mel and durations of the same pass,
so that they fit. Utterances in which no head of its attention is focused are left out. ``mels="real"`` takes its
durations alone, the paper's ablation; ``vitalk.speech.features.Speech`` with an aligner goes without a teacher.

``vitalk.speech.judge.robustness`` counts what a voice repeats and skips in 50 hard sentences:

    >>> from vitalk.speech.judge.recogniser import Recogniser
    >>> from vitalk.speech.judge.robustness import robustness
    >>> from vitalk.trained import trained_voice
    >>> robustness(trained_voice("runs/fastspeech-cpu"), Recogniser())

(unconfirmed) and ours: dropout of 0.1; weights 1 of both losses; durations are learnt as log(frames + 1), as is usual,
and a symbol may last no frame at all, an utterance one at least; speakers, whose vectors are added to the encoding.
Tempo is all that can be told: pitch and energy are FastSpeech 2's. The student learns from scratch; no weights
are copied from the teacher.
"""

from .model import FastSpeech, Output, fastspeech, fastspeech_rerun, fastspeech_small, losses
from .teaching import Lesson, LessonCache, TaughtSpeech, teach

__all__ = [
    "FastSpeech",
    "Lesson",
    "LessonCache",
    "Output",
    "TaughtSpeech",
    "fastspeech",
    "fastspeech_rerun",
    "fastspeech_small",
    "losses",
    "teach",
]
