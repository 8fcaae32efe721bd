"""AdaSpeech: a voice from about twenty sentences, stored in five thousand numbers.

Chen et al., "AdaSpeech: Adaptive Text to Speech for Custom Voice", ICLR 2021, arXiv 2103.00993.

It is FastSpeech 2, and stands on ``vitalk.systems.fastspeech2``, with two additions. The text's states are told how a
recording sounds: who speaks, a vector of the whole utterance, and of each phoneme four numbers, which a predictor says
where there is no recording. And the scale and bias of every layer norm in the mel decoder are linear functions of the
speaker's vector. A new voice tunes these functions and a vector of its own; when it is done they are computed once,
and gamma, beta and the vector are all that is stored.

    vitalk train aligner --preset cpu --data SPEAKERS -o runs/aligner-cpu
    vitalk train adaspeech --preset cpu --data SPEAKERS           # presets tiny, cpu, paper: stages one and two
    vitalk adapt --voice runs/adaspeech-cpu --from RECORDINGS/anna    # stage three; runs/…/voices/anna.safetensors
    vitalk speak "Hello." --voice runs/adaspeech-cpu --speaker anna -o hello.wav
    vitalk export runs/adaspeech-cpu/model.safetensors --vocoder VOCODER -o voices.onnx    # with all of its voices

    >>> from vitalk.systems.adaspeech import adaspeech, fold
    >>> model = adaspeech(n_symbols=320, speakers=100)
    >>> heard = model.listen(mel, durations, text_lengths)  # training: the utterance and its phonemes
    >>> out = model(ids, text_lengths, durations, f0, energy, speaker, **heard)
    >>> mel = fold(model)(ids, speaker=speaker).mel  # [batch, mels, frames], by the speakers' own references

``adaspeech`` is the paper's model: adaptation moves 1,184,512 weights of it and finds 4,864 numbers, both as published.
A file has 5,120: the reference's vector, 256 more, comes along, so that no recording is needed to speak.
``adaspeech_small`` is ours for a plain CPU, ``adaspeech_tuanh`` the public reimplementation with conditional norms,
whose checkpoints load by ``from_tuanh123789``; ``from_rishikksh20`` loads the acoustic encoders of another.

Source voices do not change: an adapter is a row beside theirs in the tables of ``fold``, whose bits stay, and the maps
that adaptation moved are thrown away. Adapters know the model that they fit and are refused by others.

Different from the paper, or open there (unconfirmed): learning rate and start of the new vector (the mean of the
sources') are ours, and so is the choice of a reference among a speaker's recordings; LibriTTS is heard at 22.05 kHz by
the preset ``paper``, which has a vocoder here, not at 16. In the second stage the phoneme encoder goes on learning and
only the predictor's targets are detached; rishikksh20/AdaSpeech freezes it. Different from all public code: averages
over time leave padding out, so an utterance sounds the same alone and in a batch.
"""

from .adaptation import Adaptation, adapt
from .checkpoint import from_rishikksh20, from_tuanh123789
from .conditional import ConditionalLayerNorm, FoldedLayerNorm
from .encoders import UtteranceEncoder, phoneme_mel
from .model import AdaOutput, AdaSpeech
from .variants import adaspeech, adaspeech_small, adaspeech_tuanh
from .voices import Adapter, fold

__all__ = [
    "AdaOutput",
    "AdaSpeech",
    "Adaptation",
    "Adapter",
    "ConditionalLayerNorm",
    "FoldedLayerNorm",
    "UtteranceEncoder",
    "adapt",
    "adaspeech",
    "adaspeech_small",
    "adaspeech_tuanh",
    "fold",
    "from_rishikksh20",
    "from_tuanh123789",
    "phoneme_mel",
]
