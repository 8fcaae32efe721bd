"""Models in the sizes that are worth a name."""

from typing import Any

from vitalk.speech.acoustic.variance import Spread

from .conformer import Blocks
from .model import DelightfulTTS
from .prosody import Predictor, Reference

PARTS: dict[str, Any] = {  # of dunky11/voicesmith, and of coqui's model that comes from it
    "reference": Reference(norm="time"), "predictor": Predictor("separable"),
    "prosody_predictor": Predictor("separable", dropout=0.1), "wrapped": True, "conditioning": "gate",
    "duration_gradient": 0.0, "between": False,
}  # fmt: skip
BLOCKS: dict[str, Any] = {"activation": "leaky", "norm": "time", "positions": "wrapped"}


def delightfultts(n_symbols: int, **options: Any) -> DelightfulTTS:
    """The paper's model: 6 + 6 improved Conformer blocks of width 384 with 8 heads (unconfirmed); 84 M parameters.

    options: of ``DelightfulTTS``.
    """
    return DelightfulTTS(n_symbols, **options)


def delightfultts_voicesmith(
    n_symbols: int,
    pitch_range: tuple[float, float] = (-2.5, 3.5),
    speakers: int = 1,
    languages: int = 1,
    **options: Any,
) -> DelightfulTTS:
    """dunky11/voicesmith's English model: 4 + 6 blocks of width 384, without feed-forward; gates for the speaker.

    Pitch is normalised beforehand, pitch_range in deviations; give ``f0_spread`` in Hz to multiply those.
    """
    blocks = {"heads": 6, "order": "voicesmith-slim", **BLOCKS}
    sizes = {"encoder": Blocks(4, **blocks), "decoder": Blocks(6, kernel=11, **blocks), "language_dim": 1}
    told = {"f0_spread": Spread(0.0, 1.0, *pitch_range), "speakers": speakers, "languages": languages, "chained": False}
    return DelightfulTTS(n_symbols, **{**PARTS, **sizes, **told, **options})


def delightfultts_multilingual(
    n_symbols: int,
    pitch_range: tuple[float, float] = (-2.5, 3.5),
    speakers: int = 1,
    languages: int = 10,
    **options: Any,
) -> DelightfulTTS:
    """dunky11/voicesmith's multilingual model: 6 + 6 blocks of width 512 with feed-forward."""
    blocks = {"heads": 8, "order": "voicesmith", **BLOCKS}
    sizes = {"dim": 512, "encoder": Blocks(6, **blocks), "decoder": Blocks(6, kernel=11, **blocks),
             "speaker_dim": 1024, "language_dim": 256}  # fmt: skip
    told = {"f0_spread": Spread(0.0, 1.0, *pitch_range), "speakers": speakers, "languages": languages, "chained": False}
    return DelightfulTTS(n_symbols, **{**PARTS, **sizes, **told, **options})


def delightfultts_coqui(n_symbols: int, mels: int = 100, **options: Any) -> DelightfulTTS:
    """The acoustic model of coqui's TTS: as the multilingual one, with energy, curves and an aligner inside."""
    blocks = {"heads": 8, "order": "voicesmith", **BLOCKS}
    sizes = {"dim": 512, "encoder": Blocks(6, **blocks), "decoder": Blocks(6, kernel=11, **blocks),
             "utterance_dim": 512}  # fmt: skip
    told = {"f0_spread": Spread(0.0, 1.0, -4.0, 4.0), "energy_spread": Spread(0.0, 1.0, -4.0, 4.0), "energy": True}
    more = {"embedding": "curve", "unit_speaker": True, "aligner": True}
    return DelightfulTTS(n_symbols, mels, **{**PARTS, **sizes, **told, **more, **options})


def delightfultts_small(n_symbols: int, **options: Any) -> DelightfulTTS:
    """For one voice on a plain CPU: 3 + 3 blocks of width 128, 5.2 M parameters (ours).

    Pitch goes in as a curve, so that factors beyond the training data work; durations keep their total and send a
    tenth of their gradient to the encoder.
    """
    blocks: dict[str, Any] = {"depth": 3, "heads": 2}
    sizes = {"dim": 128, "encoder": Blocks(**blocks), "decoder": Blocks(kernel=11, **blocks),
             "utterance_dim": 32, "tokens": 16, "predictor": Predictor(kernel=3, dropout=0.3)}  # fmt: skip
    training = {"embedding": "curve", "duration_gradient": 0.1, "rounding": "total", "between": False}
    return DelightfulTTS(n_symbols, **{**sizes, **training, **options})
