"""Models in the sizes that are worth a name."""

from typing import Any

from vitalk.speech.acoustic.variance import Spread
from vitalk.systems.fastspeech2.model import Encoding, Predictor

from .model import AdaSpeech


def adaspeech(n_symbols: int, **options: Any) -> AdaSpeech:
    """The paper's size: 4 + 4 blocks of width 256, pitch and energy of every frame.

    That pitch is predicted directly, not through wavelets, is as in the paper's losses; its level is (unconfirmed).
    options: of ``AdaSpeech``.
    """
    return AdaSpeech(n_symbols, **{"pitch": "frame", **options})


def adaspeech_tuanh(
    n_symbols: int = 361,
    pitch_range: tuple[float, float] = (-2.5, 3.5),
    energy_range: tuple[float, float] = (-1.8, 5.0),
    **options: Any,
) -> AdaSpeech:
    """The public reimplementation with conditional norms, tuanh123789/AdaSpeech, which stands on ming024/FastSpeech2.

    4 + 6 blocks, averages over phonemes, a post-net; the last norm is on the mel bands, and the phoneme predictor is
    not told who speaks. Pitch and energy are normalised beforehand, as in ``fastspeech2_ming``, which explains the
    ranges. Its checkpoints load by ``load_state_dict(from_tuanh123789(state), strict=False)``; name its languages.
    """
    blocks = {"encoder": Encoding(dropout=0.2), "decoder": Encoding(depth=6, dropout=0.2)}
    spreads = {"f0_spread": Spread(0.0, 1.0, *pitch_range), "energy_spread": Spread(0.0, 1.0, *energy_range)}
    levels = {"pitch": "phoneme", "energy": "phoneme", "postnet": True}
    order = {"final_norm": "mel", "predictor_hears_voice": False}
    return AdaSpeech(n_symbols, **{**blocks, **spreads, **levels, **order, **options})


def adaspeech_small(n_symbols: int, **options: Any) -> AdaSpeech:
    """For a plain CPU: the sizes of ``fastspeech2_small``, 4 + 4 blocks of width 192 with short kernels (ours)."""
    blocks = Encoding(hidden=384, kernels=(5, 1))
    sizes = {"dim": 192, "encoder": blocks, "decoder": blocks, "predictor": Predictor(dropout=0.3)}
    levels = {"pitch": "phoneme", "energy": "phoneme", "embedding": "curve"}
    training = {"predictor_gradient": 0.1, "rounding": "total", "energy_spread": Spread(30.0, 30.0, 0.0, 300.0)}
    return AdaSpeech(n_symbols, **{**sizes, **levels, **training, **options})
