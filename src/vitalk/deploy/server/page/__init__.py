"""The web page at /: Gradio, mounted on the server's application."""

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from starlette.middleware import Middleware

from ..service import Service
from .doors import Doors, sweeping
from .look import CSS, HEAD, theme
from .seeing import seeing_tab
from .speaking import speaking_tab
from .tables import measurements_tab
from .tokens import tokens_tab
from .uploads import Uploads

USER = "vitalk"
KEPT = 600  # seconds that sounds and pictures stay on the disk
PICTURES = 64  # as many of the largest as the disk holds at a time


def mount_page(app: FastAPI, service: Service) -> None:
    """Mount the page at /, behind the routes that the application has already.

    Where the server has a token, the page asks for it: user ``vitalk``, the token as password.
    """
    settings = service.settings
    kept = tempfile.TemporaryDirectory(prefix="vitalk-page-")
    app.state.page_folder = folder = Path(kept.name).resolve()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with kept:
            sweeper = asyncio.create_task(sweeping(folder, 2 * KEPT))  # Gradio forgets uploads that broke off
            yield
            sweeper.cancel()

    inner = {"middleware": [Middleware(Doors, folder, PICTURES * settings.picture_bytes)], "lifespan": lifespan}
    with _gradio_files_in(folder):
        gr.mount_gradio_app(
            app, _blocks(service, Uploads(folder, settings.picture_bytes)), "/", app_kwargs=inner, theme=theme(),
            css=CSS, auth=None if settings.token is None else _checked(settings.token), show_error=False, pwa=False,
            auth_message="The user is vitalk, the password is the server's token.", enable_monitoring=False,
            max_file_size=settings.picture_bytes, footer_links=[], run_history=False, ssr_mode=False, mcp_server=False,
        )  # fmt: skip


def _blocks(service: Service, uploads: Uploads) -> gr.Blocks:
    with gr.Blocks(title="vitalk", analytics_enabled=False, delete_cache=(KEPT // 10, KEPT)) as blocks:
        gr.HTML(HEAD)
        with gr.Tab("Speak"):
            speaking_tab(service)
        with gr.Tab("See and say"):
            seeing_tab(service, uploads)
        with gr.Tab("Token reduction"):
            tokens_tab(service, uploads)
        with gr.Tab("Benchmarks"):
            measurements_tab(service)
    return blocks


def _checked(token: str) -> Callable[[str, str], bool]:
    def check(user: str, password: str) -> bool:
        return user == USER and secrets.compare_digest(password.encode(), token.encode())

    return check


@contextmanager
def _gradio_files_in(folder: Path) -> Iterator[None]:
    """Gradio asks the environment for its folder whenever a component or an application is made."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
