"""USAT: one model that speaks as anybody, from a recording at once or from a minute of speech by small adapters.

Wang, Song, Jha, "USAT: A Universal Speaker-Adaptive Text-to-Speech Approach", IEEE/ACM TASLP 2024, arXiv 2404.18094.

VITS rebuilt so that what is said and who says it come apart. A VAE with a learned memory turns linear spectra into
latents z, which hold both, and back into sound. An invertible flow that is told a speaker's vector maps z to content
alone, which is what the text predicts; the vector is heard in another recording of the speaker. Two discriminators see
to it that the vector holds no words and the content no speaker. To speak, the text's content goes through the flow the
other way with the vector of a recording ("instant"), or of a minute of them with adapters ("fine-grained").

    vitalk train usat --preset cpu --data SPEAKERS            # presets tiny, cpu, paper; needs no aligner
    vitalk speak "Hello." --voice runs/usat-cpu --speaker NAME -o hello.wav
    vitalk adapt --voice runs/usat-cpu --from RECORDINGS/anna  # runs/usat-cpu/voices/anna.safetensors
    vitalk speak "Hello." --voice runs/usat-cpu --speaker anna --vocoder runs/vocoder-cpu -o hello.wav

    >>> from vitalk.speech.audio import Audio
    >>> from vitalk.speech.synthesizer import Prompt
    >>> from vitalk.trained import trained_voice
    >>> voice = trained_voice("runs/usat-cpu")
    >>> voice.synthesize("Hello.", Prompt(reference=Audio.load("anybody.wav"))).save("hello.wav")

    >>> from vitalk.systems.usat import linear, usat
    >>> model = usat(n_symbols=320).eval()
    >>> vector = model.listen(linear(wave, model.spec))  # [batch, 256]
    >>> model(ids, voice=vector).wave  # [batch, samples]

``usat`` is the paper's model, whose decoder makes waves. ``usat_small`` is ours for a plain CPU: everything from z to
the content is kept, the decoder makes mels, for which a vocoder is trained apart. Any generator of
``vitalk.speech.vocoder.generators`` can be the decoder. ``vitalk export`` writes the speakers of a model that makes
mels; adapted voices and references speak in torch.

Fine-grained adaptation freezes the model and moves adapters and the vector, which begins as the mean of the
recordings': as they begin with zeros, the first step says what the model says, and the model's own speakers never
change. A voice's file holds nothing else, and is refused by other models.

Ours, where the paper is silent or its equations were not to be had (unconfirmed): the memory's slots (1,000) and heads;
the forms of both discriminators, binary cross-entropy, and "undecided" as what the speaker encoder is to bring D_p to;
the shares of an utterance that D_p compares, and that these of both utterances are equally long, since their lengths
would tell them apart; the width of the vectors; exact places and kernels of the adapters, which come to 0.62 M weights
where the paper states 0.64 M. Ours on purpose: both discriminators are heeded little by little (``ramp``), references
are heard without gradient, and silence stands around utterances, so that one gives the same alone and in a batch.
"""

from .adaptation import Adaptation, adapt
from .adapters import Adapters, insert
from .duration import StochasticDuration, spline
from .memory import Memory
from .model import Output, Usat, linear
from .speaking import UsatVoice, trained_voice
from .variants import usat, usat_small
from .voices import AdaptedVoice, adapted

__all__ = [
    "Adaptation",
    "AdaptedVoice",
    "Adapters",
    "Memory",
    "Output",
    "StochasticDuration",
    "Usat",
    "UsatVoice",
    "adapt",
    "adapted",
    "insert",
    "linear",
    "spline",
    "trained_voice",
    "usat",
    "usat_small",
]
