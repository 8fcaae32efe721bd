"""Recordings to sound like: what every system that takes one asks of them."""

from vitalk.errors import UserError

from .audio import Audio
from .features import LEVEL
from .mel import MelSpec
from .pitch import f0

SHORTEST = 1.0  # seconds of speech
VOICED = 0.25  # share of the frames that must have a pitch
FAINTEST = -60.0  # dB RMS relative to full scale


def speaker_reference(audio: Audio, spec: MelSpec) -> Audio:
    """A recording at the spec's rate, cut and levelled as training does it.

    Raises UserError where there is less than a second of speech, or sound without a voice.
    """
    audio = audio.resampled(spec.rate).trimmed().levelled(LEVEL)
    if audio.rms() < FAINTEST:
        raise UserError("the reference is silent; give a recording of the voice, best 3 to 10 seconds")
    if audio.seconds < SHORTEST:
        raise UserError(f"the reference has {audio.seconds:.2f} s of sound; give {SHORTEST:g} s or more, best 3 to 10")
    share = (f0(audio, spec.hop, spec.center, 60.0, 600.0) > 0).mean()
    if share < VOICED:
        raise UserError(f"only {share:.0%} of the reference has a pitch, so it is no speech; give a clean recording")
    return audio
