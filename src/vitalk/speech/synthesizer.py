"""What every system that speaks has in common: text and a prompt in, sound out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .audio import Audio


@dataclass(frozen=True)
class Prompt:
    """How something is to be said; a system uses what it understands and refuses what it would have to ignore.

    speaker: a name that the voice knows. reference, reference_text: a recording to sound like and its text.
    style: a description in words. face: a picture of the speaker. duration: of the whole, in seconds.
    speed, pitch, energy: factors on the voice's own. lang: an espeak language, None for the voice's own.
    """

    speaker: str | None = None
    reference: Audio | None = None
    reference_text: str | None = None
    style: str | None = None
    face: Path | None = None
    duration: float | None = None
    speed: float = 1.0
    pitch: float = 1.0
    energy: float = 1.0
    lang: str | None = None


class Synthesizer(Protocol):
    """A system that speaks; ``rate`` in Hz is that of the sound it gives."""

    rate: int

    def synthesize(self, text: str, prompt: Prompt = Prompt()) -> Audio:
        """Say ``text``. Raises UserError for texts without anything to say and prompts that it cannot follow."""
        ...
