"""What stands before every request: how many come in, how much each may send, and how long it may take to."""

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = "; ".join([  # the page's own scripts need inline code; nothing may come from, or go to, another host
    "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:", "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:", "media-src 'self' data: blob:", "font-src 'self' data:", "worker-src 'self' blob:",
    "connect-src 'self' data: blob:", "frame-ancestors 'self'", "base-uri 'self'", "form-action 'self'",
])  # fmt: skip
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", POLICY.encode()),
]


class Gate:
    """Lets ``most`` requests in at a time; the others are to come again, after about as long as one takes."""

    def __init__(self, most: int):
        self.most, self.inside, self.usual = most, 0, 1.0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Inside as long as it lasts. Raises HTTPException 429 with Retry-After where it is full."""
        if self.inside >= self.most:
            later = {"Retry-After": str(max(1, math.ceil(self.usual)))}
            raise HTTPException(429, f"{self.inside} requests are waiting already; try again later", later)
        self.inside += 1
        start = monotonic()
        try:
            yield
        finally:
            self.inside -= 1
            self.usual += 0.1 * (monotonic() - start - self.usual)


class BodyGuard:
    """ASGI: refuses bodies that are too long before they are read, and clients that stop in the middle of one.

    allowed: bytes by path. patience, whole: seconds for each part of a body, and for all of it.
    Adds headers that keep browsers from loading anything from other hosts.
    """

    def __init__(self, app: ASGIApp, allowed: Callable[[str], int], patience: float, whole: float):
        self.app, self.allowed, self.patience, self.whole = app, allowed, patience, whole

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As every ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most, got, complete = self.allowed(scope["path"]), 0, False
        end = monotonic() + self.whole
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        too_long = HTTPException(413, f"the request is longer than {most} bytes; send less", {"Connection": "close"})

        async def counted() -> Message:
            nonlocal got, complete
            if int(declared if declared.isdigit() else 0) > most:
                raise too_long
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), min(self.patience, end - monotonic()))
            except TimeoutError:
                raise HTTPException(408, "the request did not come to its end", {"Connection": "close"}) from None
            got += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if got > most:
                raise too_long
            return message

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        await self.app(scope, counted, guarded)
