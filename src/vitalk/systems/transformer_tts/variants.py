"""Models in the sizes that are worth a name."""

from typing import Any

from .layers import Layers
from .model import Refinement, TransformerTTS


def transformer_tts(n_symbols: int, **options: Any) -> TransformerTTS:
    """The paper's size: 6 + 6 layers of width 512, 8 heads; 53.0 M parameters for 100 symbols.

    Feed-forward layers are 2048 wide, the base Transformer's ((unconfirmed) for this paper). options: of
    ``TransformerTTS``; the paper's ablations are ``Layers(depth=3)`` and ``Layers(heads=4)`` in both stacks.
    """
    return TransformerTTS(n_symbols, **options)


def transformer_tts_teacher(n_symbols: int, **options: Any) -> TransformerTTS:
    """FastSpeech's teacher (arXiv 1905.09263): 6 + 6 layers of width 384, 2 heads, convolutions in the layers.

    The stated sizes make 60.1 M parameters, the 30.7 M that are published for it ((unconfirmed)) are
    nearer to dense layers, ``kernels=(1, 1)``: 31.8 M.
    """
    blocks = Layers(heads=2, hidden=1536, kernels=(3, 3))
    return TransformerTTS(n_symbols, **{"dim": 384, "encoder": blocks, "decoder": blocks, **options})


def transformer_tts_fs2(n_symbols: int, **options: Any) -> TransformerTTS:
    """The baseline of the FastSpeech 2 paper (arXiv 2006.04558): 4 + 4 layers of width 256, 2 heads.

    Its layers have the convolutions of that paper's blocks, (9, 1) frames; 24 M parameters are published
    ((unconfirmed)), 25.4 M counted without a post-net, as here.
    """
    blocks = Layers(4, 2, 1024, (9, 1))
    return TransformerTTS(n_symbols, **{"dim": 256, "encoder": blocks, "decoder": blocks, "postnet": None, **options})


def transformer_tts_soobinseo(
    n_symbols: int = 149, dim: int = 256, embedding: int = 512, **options: Any
) -> TransformerTTS:
    """The best-known reimplementation, soobinseo/Transformer-TTS: 3 + 3 layers of width 256, 4 heads; 9.0 M parameters.

    Its checkpoints load by ``from_soobinseo``. Other than there, padding is masked whether the model trains or not,
    and the stop token is there to be trained; the network that makes linear spectrograms (CBHG) is left to vocoders.
    """
    blocks = Layers(3, 4, 4 * dim, dropout=0.0)
    style = {"concat": True, "first_position": 1, "prenet": (2 * dim, dim), "prenet_dropout": 0.2}
    style["postnet"] = Refinement(dim, dropout=0.1, causal=True)
    return TransformerTTS(
        n_symbols, **{"dim": dim, "embedding": embedding, "encoder": blocks, "decoder": blocks, **style, **options}
    )


def transformer_tts_small(n_symbols: int, **options: Any) -> TransformerTTS:
    """For one voice on a plain CPU: 3 + 3 layers of width 192, 2 frames a step, norms first; 4.6 M weights (ours)."""
    blocks = Layers(3, 2, 768)
    sizes = {"dim": 192, "encoder": blocks, "decoder": blocks, "prenet": (128, 128), "postnet": Refinement(192)}
    return TransformerTTS(n_symbols, **{**sizes, "frames_per_step": 2, "norm": "pre", **options})
