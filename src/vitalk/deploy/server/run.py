"""The server process: uvicorn around the application, patient with slow clients only for a while."""

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vitalk.errors import UserError

from .app import create_app
from .settings import Settings

CONNECTIONS = 1000
GRACE = 5.0  # seconds beyond a request's own limit that running requests have when the server is told to stop


def patient(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP protocol, which hangs up on connections that have not sent a request within ``seconds``."""

    class Patient(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.waiting = asyncio.get_running_loop().call_later(seconds, self._give_up)

        def _give_up(self) -> None:
            if self.cycle is None:
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self.waiting.cancel()
            super().connection_lost(exc)

    return Patient


def serve(settings: Settings, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until interrupted or terminated; then no new request is taken, and those that run are finished.

    Raises UserError where the address is taken, or a voice or the model cannot be opened.
    """
    with listening_at(host, port) as listening:
        config = uvicorn.Config(
            create_app(settings), http=patient(settings.patience), limit_concurrency=CONNECTIONS, timeout_keep_alive=15,
            timeout_graceful_shutdown=int(settings.seconds + GRACE), log_level="warning", server_header=False,
        )  # fmt: skip
        server = uvicorn.Server(config)
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{listening.getsockname()[1]} (API: /docs)", flush=True)
        server.run(sockets=[listening])


def listening_at(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UserError where the address is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot listen on {host} port {port} ({reason}); choose another --port") from None
