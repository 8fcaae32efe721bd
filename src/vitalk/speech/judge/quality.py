"""How clean it sounds: DNSMOS, a listener's marks guessed by a network, no reference needed."""

import numpy as np

from vitalk.errors import UserError
from vitalk.speech.audio import Audio

from .need import need

RATE = 16_000  # Hz
SHORTEST = 0.1  # s


def dnsmos(audio: Audio) -> dict[str, float]:
    """Marks from 1 (bad) to 5: "ovrl" overall, "sig" the voice, "bak" the background (P.835), "p808" overall (P.808).

    DNSMOS P.835 (arXiv 2110.01763) by speechmos, means over windows of 9.01 s, a second apart.
    Sound is resampled to 16 kHz. Its level stays, as the marks depend on it: only sound with peaks above full scale
    is scaled down to it, so level recordings alike (``Audio.levelled``) before comparing them. Sound shorter than a
    window is doubled until it fills one, which is what the authors' script does.
    Raises UserError below 0.1 s, and for silence, whose marks would mean nothing.
    """
    if audio.seconds < SHORTEST:
        raise UserError(f"{audio.seconds:.2f} s of sound are too short for DNSMOS; {SHORTEST} s are needed")
    samples = audio.resampled(RATE).samples
    peak = float(np.abs(samples).max())
    if not peak:
        raise UserError("silence has no quality to judge")
    found = need("speechmos.dnsmos").run(samples / max(peak, 1.0), RATE)
    return {name: float(found[f"{name}_mos"]) for name in ("ovrl", "sig", "bak", "p808")}
