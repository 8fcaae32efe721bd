"""Pictures that people drop on the page, as bytes: nothing is decoded before the limits are known to be kept."""

from pathlib import Path

import gradio as gr

from vitalk.errors import UserError

from .doors import within


class Uploads:
    """The page's own folder, where Gradio puts what is uploaded and what it sends.

    most: bytes of a picture.
    """

    def __init__(self, folder: Path, most: int):
        self.folder, self.most = folder, most

    def picture(self, label: str, name: str) -> gr.Image:
        """A place to drop a picture on. Events that read it leave Gradio's preprocessing out, which would decode it."""
        return gr.Image(
            label=label, sources=["upload"], type="filepath", elem_id=name, height=260,
            buttons=["fullscreen"], alt_text="The picture that was chosen",
        )  # fmt: skip

    def read(self, file: dict | None) -> bytes:
        """The bytes of a file as Gradio's page names it.

        Raises UserError where it names none, one that is gone or from elsewhere, or one that is too long.
        """
        if not file or not isinstance(named := file.get("path"), str):
            raise UserError("choose a picture first")
        if not within(self.folder, named):
            raise UserError("the picture is no longer here; choose it again")
        data = Path(named).read_bytes()
        if len(data) > self.most:
            raise UserError(f"the picture is longer than {self.most / 2**20:g} MiB; make it smaller")
        return data
