"""The server on Ray: copies of the same application behind Ray Serve, as many as the requests need.

    vitalk serve --ray --replicas 4                                   # on this machine
    serve run vitalk.deploy.ray_serve:app max_replicas=8 workers=2    # on a cluster; docs/serving-on-ray.md

Needs ``pip install "vitalk[serve,data]"``. A replica takes as many requests at a time as ``Settings.waiting`` says, as
many again as all of them take wait at each of Serve's proxies until one has room, and what comes then is answered 429
with Retry-After.
"""

import logging
import math
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from pydantic import ConfigDict, PositiveInt, create_model

from vitalk.errors import UserError

from .server.app import create_app
from .server.run import GRACE, listening_at
from .server.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application

NAME = "vitalk"
MEMORY = 128 * 2**20  # bytes of Ray's object store, through which no sound goes; Ray takes 75 MiB at least
QUIET = {"log_level": "WARNING", "enable_access_log": False}
ALONE = {  # read when ray is imported, so ray is imported after
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # no cluster, as is the rule on those: every port is on loopback
}

Arguments = create_model(
    "Arguments",
    __doc__="""What ``serve run`` takes as NAME=VALUE, and a Serve config file as ``args``: the fields of ``Settings``
    without the token, which everybody who sees the cluster would see; and

    min_replicas, max_replicas: copies of the server. token_file: on every node; what is in it, clients must send.
    """,
    __config__=ConfigDict(extra="forbid"),
    min_replicas=(PositiveInt, 1),
    max_replicas=(PositiveInt, 4),
    token_file=(str, ""),
    **{field.name: (field.type, field.default) for field in fields(Settings) if field.name != "token"},
)


def app(args: Arguments) -> "Application":
    """The application for ``serve run``, ``serve build`` and ``serve deploy``.

    Workers have one thread where nothing is said, since nodes differ. Raises UserError for numbers that mean nothing.
    """
    from .ray_replica import application

    told = args.model_dump()
    least, most, token_file = (told.pop(name) for name in ("min_replicas", "max_replicas", "token_file"))
    if least > most:
        raise UserError(f"min_replicas is {least}, but max_replicas {most}; let the second be as large")
    return application(Settings(**{**told, "threads": told["threads"] or 1}), least, most, token_file)


def serve_on_ray(settings: Settings, host: str = "127.0.0.1", port: int = 8000, replicas: int = 4) -> None:
    """Serve from a Ray of its own on this machine until interrupted or terminated; then finish what runs.

    Replicas share the cores out, so there are no more than fit. Raises UserError as ``vitalk.deploy.server.run.serve``.
    """
    have = os.cpu_count() or 1
    settings = replace(settings, threads=settings.threads or max(1, have // (settings.workers * replicas)))
    one = settings.workers * settings.threads_a_worker
    most = min(replicas, max(1, have // one))
    with listening_at(host, port) as listening:
        port = listening.getsockname()[1]
    create_app(replace(settings, page=False))  # what cannot be opened is told before anything starts
    with on_this_machine(most * one, host, port, settings.seconds + GRACE):
        from ray import serve

        from .ray_replica import application

        serve.run(application(settings, 1, most), name=NAME, logging_config=QUIET)
        page = "API: /docs" if most == 1 or not settings.page else "API: /docs; the page needs --replicas 1"
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{port} (up to {most} replicas; {page})", flush=True)
        _wait()
        finish(settings.seconds + GRACE)


@contextmanager
def on_this_machine(num_cpus: int, host: str, port: int, seconds: float) -> Iterator[None]:
    """A Ray with Serve that nobody else reaches but through ``host`` and ``port``; it ends with the block.

    num_cpus: that replicas may take in all. seconds: for one request.
    """
    os.environ.update(ALONE)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray leaves one in the home folder
    import ray
    from ray import serve

    ray.init(
        address="local", num_cpus=num_cpus, include_dashboard=False, object_store_memory=MEMORY, logging_level="ERROR"
    )
    try:
        logging.getLogger("ray.serve").setLevel("WARNING")
        http = {"host": host, "port": port, "request_timeout_s": seconds, "keep_alive_timeout_s": 15}
        serve.start(proxy_location="HeadOnly", http_options=http, logging_config=QUIET)
        yield
    finally:
        ray.shutdown()


def finish(seconds: float) -> None:
    """Take no new request, and wait until those that run are answered, which takes ``seconds`` at most."""
    from ray import serve

    for _ in range(math.ceil(seconds / 60)):  # Serve itself waits for a minute
        with suppress(TimeoutError):
            serve.delete(NAME)
            return


def _wait() -> None:
    """Until interrupted or terminated; another interrupt then ends everything at once."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    told.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)
