"""What the tabs share: how they ask the service, how they tell errors, and how they show pictures."""

import functools
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from html import escape
from typing import Any

import gradio as gr
from starlette.exceptions import HTTPException

from vitalk.errors import UserError
from vitalk.speech.voice import Spoken

from ..service import Service
from ..workers import Late, Lost

Handler = Callable[..., Awaitable[tuple]]


def guarded(service: Service, shown: int) -> Callable[[Handler], Handler]:
    """Let a handler, whose first output is a notice, in by the service's gate, and tell its errors as that notice.

    shown: its other outputs, which an error empties.
    """

    def around(handler: Handler) -> Handler:
        @functools.wraps(handler)
        async def asked(*given: Any) -> tuple:
            try:
                with service.gate.entered():
                    return await handler(*given)
            except Exception as error:  # a page shows a sentence, whatever happened
                return notice(told(error), alarm=True), *[None] * shown

        return asked

    return around


def told(error: Exception) -> str:
    """What a person is told of an error, in a sentence; what nobody expected goes to the log."""
    if isinstance(error, HTTPException):
        return _sentence(error.detail)
    if isinstance(error, UserError):
        return _sentence(str(error))
    if isinstance(error, Late | TimeoutError):
        return "It took longer than this server allows; give less at a time."
    if isinstance(error, Lost):
        return "The worker died again and again; try another text."
    logging.getLogger(__name__).error("the page failed", exc_info=error)
    return "The server failed; its log says more."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def notice(text: str, alarm: bool = False) -> str:
    """A line that screen readers say when it appears; alarm: at once."""
    kind = "alert" if alarm else "status"
    return f'<p class="vt-{kind}" role="{kind}">{escape(text)}</p>'


def figure(source: str, alt: str, caption: str, name: str) -> str:
    """A picture in its own size, in a box that scrolls sideways where the page is narrower.

    source: its address. alt: what it shows, for those who do not see it. name: of the box.
    """
    return (
        f'<figure class="vt-figure"><div class="vt-wide" role="region" tabindex="0" aria-label="{escape(name)}">'
        f'<img src="{escape(source)}" alt="{escape(alt)}"></div><figcaption>{escape(caption)}</figcaption></figure>'
    )


def sound_player(label: str, name: str) -> gr.Audio:
    """The browser's own player, which the keyboard and screen readers know."""
    return gr.Audio(
        label=label, interactive=False, elem_id=name, buttons=["download"],
        waveform_options=gr.WaveformOptions(show_recording_waveform=False),
    )  # fmt: skip


async def spoken(service: Service, text: str, voice: str, factors: dict[str, float], lang: str | None) -> list[Spoken]:
    """A text said whole, sentence by sentence. Raises what ``Service.speak`` does."""
    speech = await service.speak(text, voice, factors, lang)
    async with aclosing(speech.parts) as parts:
        return [part async for part in parts]
