"""Models in the sizes that are worth a name."""

from typing import Any

from vitalk.speech.acoustic.variance import Spread

from .model import Encoding, FastSpeech2, Predictor


def fastspeech2(n_symbols: int, **options: Any) -> FastSpeech2:
    """The paper's size: 4 + 4 blocks of width 256, wavelet pitch and energy of every frame; 24.6 M parameters.

    options: of ``FastSpeech2``. The 27 M that the paper states are met with the first author's later predictors,
    ``variance_predictor=Predictor(layers=5, kernel=5)``.
    """
    return FastSpeech2(n_symbols, **options)


def fastspeech2_ming(
    n_symbols: int = 361,
    pitch_range: tuple[float, float] = (-2.5, 3.5),
    energy_range: tuple[float, float] = (-1.8, 5.0),
    **options: Any,
) -> FastSpeech2:
    """The best-known reimplementation, ming024/FastSpeech2: 4 + 6 blocks, averages over phonemes, a post-net.

    Its pitch and energy are normalised beforehand: pitch_range and energy_range (stats.json of a release) are in
    deviations, and so factors multiply deviations; give ``f0_spread`` and ``energy_spread`` in Hz and magnitudes,
    with the corpus' mean and std, to multiply those.
    Its checkpoints load by ``load_state_dict(from_ming024(state), strict=False)``: statistics are no part of them.
    """
    blocks = {"encoder": Encoding(dropout=0.2), "decoder": Encoding(depth=6, dropout=0.2)}
    spreads = {"f0_spread": Spread(0.0, 1.0, *pitch_range), "energy_spread": Spread(0.0, 1.0, *energy_range)}
    levels = {"pitch": "phoneme", "energy": "phoneme", "postnet": True}
    return FastSpeech2(n_symbols, **{**blocks, **spreads, **levels, **options})


def fastspeech2_small(n_symbols: int, **options: Any) -> FastSpeech2:
    """For one voice on a plain CPU: 4 + 4 blocks of width 192 with short kernels, 5.5 M parameters (ours).

    Pitch and energy are averages over symbols, embedded as curves, so that factors beyond the training data work;
    predictors send a tenth of their gradient to the encoder, and durations keep their total.
    """
    blocks = Encoding(hidden=384, kernels=(5, 1))
    sizes = {"dim": 192, "encoder": blocks, "decoder": blocks, "predictor": Predictor(dropout=0.3)}
    levels = {"pitch": "phoneme", "energy": "phoneme", "embedding": "curve"}
    training = {"predictor_gradient": 0.1, "rounding": "total", "energy_spread": Spread(30.0, 30.0, 0.0, 300.0)}
    return FastSpeech2(n_symbols, **{**sizes, **levels, **training, **options})
