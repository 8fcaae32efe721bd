"""The tab that sees and says: a picture, what is in it, and that aloud."""

import gradio as gr

from vitalk.deploy.runtime import sentences
from vitalk.speech.voice import RANGES, join

from ..service import Service
from .common import guarded, notice, sound_player, spoken
from .uploads import Uploads

LABELS = 5


def seeing_tab(service: Service, uploads: Uploads) -> None:
    """Lay the tab out, within the blocks that are open."""
    with gr.Row():
        with gr.Column():
            picture = uploads.picture("Picture to name", "seen")
            button = gr.Button("See and say", variant="primary", elem_id="see")
        with gr.Column():
            notes = gr.HTML(elem_id="seen-notice")
            labels = gr.Label(label="What is in it", num_top_classes=LABELS, elem_id="labels")
            sound = sound_player("Said aloud", "seen-sound")

    @guarded(service, 2)
    async def see(file: dict | None) -> tuple[str, dict[str, float], bytes]:
        found = await service.sight.see(uploads.read(file), LABELS)
        text = sentences(*found[0])
        parts = await spoken(service, text, "", dict.fromkeys(RANGES, 1.0), "en-us")
        return notice(text), dict(found), join([part.audio for part in parts]).encoded("wav")

    shown = [notes, labels, sound]
    for event in (button.click, picture.upload):
        event(see, [picture], shown, concurrency_limit=None, preprocess=False, api_visibility="private")
