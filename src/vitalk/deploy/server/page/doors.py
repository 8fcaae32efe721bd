"""What stands between the network and Gradio: what this page does not use is shut.

Gradio's server can do more than this page needs: it fetches pages of other hosts for whoever asks, and an event may
name any file of this machine, or an address, as its picture.
"""

import asyncio
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

API = "/gradio_api"
JOIN, UPLOAD, FILE = f"{API}/queue/join", f"{API}/upload", f"{API}/file="
OPEN = {"/", "/config", "/theme.css", "/favicon.ico", "/login", "/logout", JOIN, UPLOAD, f"{API}/queue/data",
        f"{API}/upload_progress"}  # fmt: skip
ROOMS = ("/assets/", "/static/", f"{API}/heartbeat/")


class Doors:
    """ASGI: lets through what the page uses, and of files only those of its own folder.

    folder: of the page. most: bytes that it may hold; beyond, nothing more is taken until old files are gone.
    """

    def __init__(self, app: ASGIApp, folder: Path, most: int):
        self.app, self.folder, self.most = app, folder, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As every ASGI application."""
        if scope["type"] == "http":
            try:
                receive = await self._admitted(scope["path"], receive)
            except HTTPException as error:
                await JSONResponse({"detail": error.detail}, error.status_code)(scope, receive, send)
                return
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        await self.app(scope, receive, send)

    async def _admitted(self, path: str, receive: Receive) -> Receive:
        if path.startswith(FILE):
            if not within(self.folder, path.removeprefix(FILE)):
                raise HTTPException(404, "there is no such file")
        elif path not in OPEN and not path.startswith(ROOMS):
            raise HTTPException(404, "there is nothing here")
        if path in (JOIN, UPLOAD) and await asyncio.to_thread(size, self.folder) > self.most:
            raise HTTPException(429, "too many sounds and pictures are kept just now; try again in some minutes")
        return await self._checked(receive) if path == JOIN else receive

    async def _checked(self, receive: Receive) -> Receive:
        """What replays a body once it is known that every file that it names is in the folder."""
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise HTTPException(400, "the request did not come to its end")
            body += message.get("body", b"")
            more = message.get("more_body", False)
        try:
            json.loads(body, object_pairs_hook=self._own)
        except (ValueError, RecursionError):
            raise HTTPException(400, "the request cannot be read") from None
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        return replay

    def _own(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, named in pairs:  # pairs, so that none hides behind another of its name
            if key == "path" and named is not None and not (isinstance(named, str) and within(self.folder, named)):
                raise HTTPException(400, "the picture is no longer here; choose it again")
        return dict(pairs)


def within(folder: Path, named: str) -> bool:
    """Whether ``named`` is the absolute path of a file that lies in the folder, links followed."""
    try:
        path = Path(os.path.realpath(named))
    except ValueError:  # a null byte
        return False
    return os.path.isabs(named) and path.is_relative_to(folder) and path.is_file()


def size(folder: Path) -> int:
    """Bytes in the folder; files that vanish meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total


async def sweeping(folder: Path, age: float) -> None:
    """Sweep the folder again and again, until cancelled."""
    while True:
        await asyncio.sleep(age / 10)
        await asyncio.to_thread(sweep, folder, age)


def sweep(folder: Path, age: float) -> None:
    """Remove files that have not changed for ``age`` seconds, and folders that have stood empty as long."""
    oldest = time.time() - age
    for parent, folders, names in os.walk(folder, topdown=False):
        for name in (*names, *folders):
            path = Path(parent, name)
            with suppress(OSError):  # gone meanwhile, or a folder that is not empty
                if path.lstat().st_mtime < oldest:
                    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
