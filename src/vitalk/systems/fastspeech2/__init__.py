"""FastSpeech 2: text to speech in parallel, with durations of an aligner and pitch and energy in the open.

Ren et al., "FastSpeech 2: Fast and High-Quality End-to-End Text to Speech", ICLR 2021, arXiv 2006.04558 (v8).

Four feed-forward Transformer blocks read the symbols. The variance adaptor predicts how many frames each lasts, repeats
its state so often, and adds what it predicts, or is told, of pitch and energy; four more blocks make the log-mel
spectrogram. It trains on real spectrograms: no teacher, no distillation. FastSpeech 2s decodes the waveform itself, the
mel decoder being a helper in training only.

    vitalk train fastspeech2 --data PATH                    # presets tiny, cpu, paper
    vitalk train fastspeech2 --preset 2s-cpu --data PATH    # FastSpeech 2s: 2s-tiny, 2s-cpu, 2s-paper

    >>> from vitalk.systems.fastspeech2 import Targets, fastspeech2
    >>> model = fastspeech2(n_symbols=320)
    >>> out = model(ids, text_lengths, durations, f0, energy)  # training: all of them known
    >>> loss = sum(model.losses(out, Targets(mel, durations, energy, ...)).values())
    >>> mel = model.eval()(ids, speed=1.2, pitch_factor=0.9).mel  # [batch, mels, frames]

``fastspeech2`` is the paper's model, ``fastspeech2s`` the one with waveforms, ``fastspeech2_ming`` the best-known
reimplementation, whose checkpoints load by ``from_ming024``, and ``fastspeech2_small`` ours for one voice on a plain
CPU, which exports as one ONNX graph with text of any length.

Pitch is of every frame, through the wavelet spectrogram, as in v8 of the paper; ``pitch="frame"`` is v1's, and
``pitch="phoneme"`` the average over each symbol. Factors multiply F0 in Hz, energy and tempo, whatever scale the
predictors learn on. ``Spread.of`` measures a corpus; the numbers stay with the weights.

What was trained speaks in torch by ``speaking.trained_voice``, a FastSpeech 2s by itself and a FastSpeech 2 through a
vocoder; ``vitalk export`` makes a voice file of the latter. 2s trains on slices of 80 frames, at first without the
discriminator (``training2s``); its losses, weights and sizes are Parallel WaveGAN's wherever the paper is silent.

    >>> from vitalk.systems.fastspeech2.speaking import trained_voice
    >>> trained_voice("runs/fastspeech2-2s-cpu/model.safetensors").speak("Hello.").save("hello.wav")

Different from the paper: mean and deviation of an utterance's pitch are predicted relative to the corpus. From
ming024/FastSpeech2: padding is zeroed before every convolution, so an utterance gives the same alone and in a batch;
the energy factor is the energy's own, not the pitch's; utterances of any length train whole. From the first author's
later release: averages over time leave padding out, predicted deviations are not lowered at inference.
"""

from vitalk.speech.acoustic.variance import Spread

from .checkpoint import from_ming024
from .decoder2s import FastSpeech2s, WaveDecoder, WaveDiscriminator, cut, fastspeech2s, random_starts
from .model import Encoding, FastSpeech2, Output, Predictor, Targets
from .pitch import WaveletPitch, WaveletPrediction
from .variants import fastspeech2, fastspeech2_ming, fastspeech2_small

__all__ = [
    "Encoding",
    "FastSpeech2",
    "FastSpeech2s",
    "Output",
    "Predictor",
    "Spread",
    "Targets",
    "WaveDecoder",
    "WaveDiscriminator",
    "WaveletPitch",
    "WaveletPrediction",
    "cut",
    "fastspeech2",
    "fastspeech2_ming",
    "fastspeech2_small",
    "fastspeech2s",
    "from_ming024",
    "random_starts",
]
