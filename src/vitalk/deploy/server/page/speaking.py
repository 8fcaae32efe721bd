"""The tab that speaks: a text, a voice and its factors; the sound, and what it looks like."""

import asyncio
from collections.abc import Sequence
from time import perf_counter
from urllib.parse import quote

import gradio as gr

from vitalk.errors import UserError
from vitalk.speech.voice import RANGES, Spoken, join

from ..service import Service
from .common import figure, guarded, notice, sound_player, spoken
from .drawing import SHOWN, draw_speech

SAMPLE = "Vision transformers that see, speech models that talk, small enough for the machine you have."
HINTS = {"speed": "2 is twice as fast", "pitch": "2 is an octave higher", "energy": "above 1 is louder"}


def speaking_tab(service: Service) -> None:
    """Lay the tab out, within the blocks that are open."""
    cards = service.voices()
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            text = gr.Textbox(
                SAMPLE, label="Text", lines=4, max_lines=12, max_length=service.settings.characters, elem_id="text"
            )
            voice = gr.Dropdown(
                [(f"{card.id} ({card.lang})", card.id) for card in cards], value=cards[0].id, label="Voice",
                elem_id="voice",
            )  # fmt: skip
            factors = [
                gr.Slider(*RANGES[name], 1.0, step=0.05, label=name.capitalize(), info=HINTS[name], elem_id=name)
                for name in RANGES
            ]
            button = gr.Button("Speak", variant="primary", elem_id="speak")
        with gr.Column(scale=3, min_width=300):
            notes = gr.HTML(elem_id="spoken-notice")
            sound = sound_player("Sound", "sound")
            picture = gr.HTML(elem_id="spoken-picture")

    @guarded(service, 2)
    async def say(text: str, voice: str, *values: float | None) -> tuple[str, bytes, str]:
        if not (text or "").strip():
            raise UserError("there is nothing to say; type some words first")
        start = perf_counter()
        wanted = {name: 1.0 if value is None else value for name, value in zip(RANGES, values, strict=True)}
        parts = await spoken(service, text, voice or "", wanted, None)
        took = perf_counter() - start
        audio = join([part.audio for part in parts])
        said = notice(f"Said {audio.seconds:.1f} seconds of speech in {took:.2f} seconds.")
        drawn = await asyncio.to_thread(picture_of, parts, audio.seconds)
        return said, await asyncio.to_thread(audio.encoded, "wav"), drawn

    given = [text, voice, *factors]
    button.click(say, given, [notes, sound, picture], concurrency_limit=None, api_visibility="private")


def picture_of(parts: Sequence[Spoken], seconds: float) -> str:
    """The picture of what was said in so many seconds, with a text for those who do not see it, as HTML."""
    symbols = "".join(symbol for part in parts if part.seconds is not None for symbol in part.symbols).strip()
    caption, alt = "Waveform and spectrogram", f"Waveform and spectrogram of {seconds:.1f} seconds of speech."
    if symbols:
        caption, alt = f"{caption}, phonemes at their times.", f"{alt} Phonemes: {symbols[:400]}"
    else:
        caption += "; this voice tells no times of phonemes."
    if seconds > SHOWN:
        caption += f" The first {SHOWN:g} of {seconds:.0f} seconds."
    source = "data:image/svg+xml," + quote(draw_speech(parts), safe="/:=;,+ '()")
    return figure(source, alt, caption, "Picture of the sound")
