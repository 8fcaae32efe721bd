"""What a server is told when it starts."""

import math
import os
from dataclasses import dataclass

from vitalk.errors import UserError


@dataclass(frozen=True)
class Settings:
    """All of it; every limit is one request's.

    voices: names, voice files or run folders, the first is the default; none: all that are installed. model: of the
    eye, as ``vitalk see`` takes it. workers: processes a voice. threads: of onnxruntime in each, None shares the cores
    out. token: that a client must send, None for no check. origins: from where other pages' scripts may call (CORS).
    page: serve the web page. waiting: requests inside at a time, running ones included. characters: of a text.
    picture_bytes, pixels: of a picture. seconds: for a whole answer. patience: seconds for a request's headers, and for
    each further part of its body. batch, linger: pictures read at once at most, and seconds to wait for more of them.

    Raises UserError for numbers that mean nothing.
    """

    voices: tuple[str, ...] = ()
    model: str | None = None
    workers: int = 1
    threads: int | None = None
    token: str | None = None
    origins: tuple[str, ...] = ()
    page: bool = True
    waiting: int = 64
    characters: int = 4096
    picture_bytes: int = 16 * 2**20
    pixels: int = 40_000_000
    seconds: float = 120.0
    patience: float = 15.0
    batch: int = 16
    linger: float = 0.004

    def __post_init__(self) -> None:
        for name in ("workers", "waiting", "characters", "picture_bytes", "pixels", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("seconds", "patience"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads must be 1 or more, got {self.threads}")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise UserError("the token must be printable ASCII characters, not blanks alone")

    @property
    def threads_a_worker(self) -> int:
        """Threads of onnxruntime in each worker."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.workers)

    def body_bytes(self, path: str) -> int:
        """The most bytes that a request to ``path`` may send: what its text or picture takes in JSON."""
        if path == "/v1/audio/speech":
            return 12 * self.characters + 16_384  # a character is at most two \uXXXX
        return self.picture_bytes * 4 // 3 + 65_536  # base64, and the form around it
