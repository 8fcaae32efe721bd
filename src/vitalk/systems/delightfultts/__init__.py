"""DelightfulTTS: improved Conformers, prosody at two levels, and a vocoder from 16 kHz mels to 48 kHz.

Liu et al., "DelightfulTTS: The Microsoft Speech Synthesis System for Blizzard Challenge 2021", arXiv 2110.12612.

A Conformer whose blocks convolve before they attend reads the symbols. Prosody is told at two levels: a vector of the
whole utterance and a narrow one of each phoneme, both heard in the recording while training and predicted from the text
when speaking; pitch and durations are told in the open. A second Conformer makes the mel of 16 kHz, which is easy to
predict, and HiFiNet, a vocoder (``vitalk.speech.vocoder.hifinet``), the wave of 48 kHz.

    vitalk train aligner --preset cpu --data PATH --data.init_args.mel=16k
    vitalk train delightfultts --data PATH                        # presets tiny, cpu, paper, finetune
    vitalk train vocoder --preset hifinet-cpu --data RECORDINGS   # of 48 kHz; also hifinet-tiny, hifinet-paper
    vitalk speak "Hello." --voice runs/delightfultts-cpu --vocoder runs/vocoder-hifinet-cpu -o hello.wav

    >>> from vitalk.systems.delightfultts import Targets, delightfultts, reference_mel
    >>> model = delightfultts(n_symbols=320)
    >>> out = model(ids, lengths, durations, f0, reference=mel, reference_lengths=frames)  # training
    >>> loss = sum(model.losses(out, Targets(mel, durations, f0)).values())
    >>> mel = model.eval()(ids, speed=1.2, pitch_factor=0.9).mel  # prosody predicted
    >>> like = reference_mel(Audio.load("cheerful.wav"), "16k")  # another sentence, whose prosody is to be followed
    >>> mel = model(ids, reference=like).mel  # the utterance's vector heard, the phonemes' predicted

``delightfultts`` is the paper's model, ``delightfultts_voicesmith`` and ``delightfultts_multilingual`` those of
dunky11/voicesmith, ``delightfultts_coqui`` the one of coqui's TTS that comes from it; their checkpoints load by
``checkpoint_filter_fn``. ``delightfultts_small`` is ours, for one voice on a plain CPU. Blocks of other designs, with
attention first or Swish, are made with ``Blocks(order="attention", activation="swish")``.

Speakers and languages are ids, added to the encoding or told to every block by gates. A model with
``aligner=True`` learns durations along, where the data has none.

The paper is short, and much is unconfirmed: the number and sizes of blocks (6 + 6, width 384, 8 heads), their inner
order beyond "convolution first", losses on the mels of all decoder blocks, here their mean, and HiFiNet's build. Ours:
phonemes hear the recording by an attention that knows the times of both (``TimedAttention``); norms run over channels,
not time; structural similarity is measured in each target's own range; the decoder meets predicted prosody in the last
tenth of the training; voices that begin anew in ``finetune`` begin as the mean of those known.
Different from voicesmith: padding has no influence, on positions and statistics over time neither, so an utterance
gives the same alone and in a batch; utterances of any length train whole.
"""

from vitalk.speech.acoustic.variance import Spread

from .checkpoint import checkpoint_filter_fn
from .conformer import Blocks, Conformer, ConformerBlock
from .model import DelightfulTTS, Output, Targets
from .prosody import PhonemeProsody, Predictor, Reference, UtteranceProsody, reference_mel
from .variants import (
    delightfultts,
    delightfultts_coqui,
    delightfultts_multilingual,
    delightfultts_small,
    delightfultts_voicesmith,
)

__all__ = [
    "Blocks",
    "Conformer",
    "ConformerBlock",
    "DelightfulTTS",
    "Output",
    "PhonemeProsody",
    "Predictor",
    "Reference",
    "Spread",
    "Targets",
    "UtteranceProsody",
    "checkpoint_filter_fn",
    "delightfultts",
    "delightfultts_coqui",
    "delightfultts_multilingual",
    "delightfultts_small",
    "delightfultts_voicesmith",
    "reference_mel",
]
