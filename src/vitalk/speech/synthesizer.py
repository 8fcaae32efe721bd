"""What every system that speaks has in common: text and a prompt in, sound out."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

from vitalk.errors import UserError

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


class Streamer(Synthesizer, Protocol):
    """A system that also gives each sentence as soon as it is ready; lang is the espeak language that it speaks."""

    name: str
    lang: str

    def stream(self, text: str, *, lang: str | None = None) -> Iterator[Audio]:
        """Say ``text`` sentence by sentence. Raises UserError for texts without anything to say."""
        ...


def refuse_beyond(prompt: Prompt, name: str, follows: Collection[str]) -> None:
    """Raise UserError where ``prompt`` sets a field that the voice ``name``, which follows ``follows``, ignores."""
    for field in fields(prompt):
        if field.name not in follows and getattr(prompt, field.name) != field.default:
            raise UserError(f"the voice {name} cannot follow a prompt with {field.name}; leave it out")
