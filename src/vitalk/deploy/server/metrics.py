"""What the server tells Prometheus."""

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .workers import VoicePool

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
RATIOS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


class Metrics:
    """Counters of one application, in a registry of their own, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("vitalk_requests", "Requests answered.", ["endpoint", "code"], registry=own)
        self.seconds = Histogram(
            "vitalk_request_seconds", "From a request to the end of its answer.", ["endpoint"], buckets=SECONDS,
            registry=own,
        )  # fmt: skip
        self.first = Histogram(
            "vitalk_first_audio_seconds", "From a request to its first sound.", buckets=SECONDS, registry=own
        )
        self.factor = Histogram(
            "vitalk_real_time_factor", "Seconds until a text was said, by seconds of sound.", ["voice"], buckets=RATIOS,
            registry=own,
        )  # fmt: skip
        self.audio = Counter("vitalk_audio_seconds", "Seconds of sound made.", ["voice"], registry=own)
        self.inside = Gauge("vitalk_queue_length", "Requests inside, waiting or running.", registry=own)
        self.working = Gauge("vitalk_sentences", "Sentences waiting or being said.", ["voice"], registry=own)
        self.deaths = Gauge("vitalk_worker_deaths", "Workers that died and were replaced.", ["voice"], registry=own)

    def watch(self, inside: Callable[[], int], pools: Iterable[tuple[str, VoicePool]]) -> None:
        """Read the gauges where they are kept, whenever they are asked for."""
        self.inside.set_function(inside)
        for name, pool in pools:
            self.working.labels(name).set_function(lambda pool=pool: pool.working)
            self.deaths.labels(name).set_function(lambda pool=pool: pool.deaths)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)


class Counted:
    """ASGI: counts each request with its code and its seconds, under the endpoint's path as it was declared."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As every ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, code = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            endpoint = getattr(scope.get("route"), "path", None) or "other"  # whatever a client makes up is one label
            self.metrics.requests.labels(endpoint, str(code)).inc()
            self.metrics.seconds.labels(endpoint).observe(time.perf_counter() - start)
