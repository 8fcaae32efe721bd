"""PortaSpeech: small and drawn from a distribution: words aligned, prosody from a VAE, detail from a flow.

Ren, Liu, Zhao, "PortaSpeech: Portable and High-Quality Generative Text-to-Speech", NeurIPS 2021, arXiv 2109.15166.

A relative-position Transformer reads the symbols, a second one their averages over words. How long each word lasts is
predicted, and cut out hard; how its symbols share that out is attention within the word. A VAE whose latent sequence
has a step every four frames, and a volume-preserving flow as its prior, makes a coarse mel; a conditional Glow, whose
WaveNets share their weights in groups of four, sharpens it.

    vitalk train portaspeech --data PATH                       # all but the post-net; presets tiny, cpu, paper
    vitalk train portaspeech --preset post-cpu --data PATH     # the post-net on top: post-tiny, post-cpu, post-paper
    vitalk speak "Hello." --voice runs/portaspeech-post-cpu -o hello.wav

    >>> from vitalk.systems.portaspeech import portaspeech_small
    >>> model = portaspeech_small(n_symbols=320).eval()
    >>> out = model(ids, speed=1.2)
    >>> out.mel, out.durations  # [batch, mels, frames], frames of each symbol [batch, text]
    >>> model(ids, postnet=False).mel  # the coarse mel; temperature=0 is the most likely sharp one

``portaspeech`` is the paper's normal model, 26.0 M weights, ``portaspeech_small`` its small one, 8.2 M, which is also
ours for one voice on a plain CPU. The paper states 21.8 M and 6.7 M: the layers of the condition, which groups of the
post-net do not share, make the difference, as in the release, whose checkpoints load by ``from_natspeech``. After
``fold`` the weight norm is gone and the inverses are kept; the model then exports as one ONNX graph.

Speech differs from call to call as torch's generator does; ``draw`` takes noise from elsewhere. Voices read theirs from
a fixed table (``Noise``), so that a text always sounds the same, exported or not. Tempo and loudness can be
told, pitch cannot.

Ours, where the paper is silent: words are what stands between spaces and punctuation, and what stands there is a word
too (``word_index``). From NATSpeech/NATSpeech, where the paper is silent: the pre-norm of the word encoder, gradients
of a tenth from durations, places in words as fractions. Different from it: padding is zeroed before every convolution,
so an utterance gives the same alone and in a batch; every item, not only a batch, is as long as a multiple of four
frames; each item's log-determinant is divided by its own length; activation norms are fitted to the corpus first. (The
number of training steps, 320,000, and the digits of the paper's ablations are unconfirmed.)
"""

from vitalk.speech.acoustic.noise import Noise

from .checkpoint import from_natspeech
from .generator import Generator, Variational
from .linguistic import BLOCK, Linguistic, Reading, word_index
from .model import Output, PortaSpeech, PostNet
from .variants import portaspeech, portaspeech_small

__all__ = [
    "BLOCK",
    "Generator",
    "Linguistic",
    "Noise",
    "Output",
    "PortaSpeech",
    "PostNet",
    "Reading",
    "Variational",
    "from_natspeech",
    "portaspeech",
    "portaspeech_small",
    "word_index",
]
