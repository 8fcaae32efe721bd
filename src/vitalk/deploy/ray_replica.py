"""One copy of the server as a replica of Ray Serve; ``ray_serve`` says how many there are, and where."""

from dataclasses import replace
from pathlib import Path

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from ray import serve
from ray.serve import Application
from ray.serve.metrics import Gauge
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitalk.errors import UserError

from .server.app import create_app
from .server.run import GRACE
from .server.settings import Settings

RETRY = 2  # seconds after which a client that was refused may try again
UP, DOWN = 5.0, 300.0  # seconds of many, or few, requests until a replica is added, or taken away
WINDOW = 15.0  # seconds over which requests are averaged for that


class Named:
    """ASGI: tells in the header X-Replica who answered."""

    def __init__(self, app: ASGIApp, name: str):
        self.app, self.header = app, (b"x-replica", name.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As every ASGI application."""

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), self.header]}
            await send(message)

        await self.app(scope, receive, named)


class Published:
    """The application's counters as Ray's metrics, since /metrics can only tell those of the replica it reaches.

    Ray's exporter on each node tells them of all its replicas, as ``ray_vitalk_…`` with the label ``replica``.
    """

    def __init__(self, registry: CollectorRegistry):
        self.registry, self.gauges = registry, dict[str, Gauge]()

    def update(self) -> None:
        """Tell Ray what the counters say now."""
        for family in self.registry.collect():
            for name, labels, value, *_ in family.samples:
                if name.endswith("_created"):
                    continue
                if name not in self.gauges:
                    self.gauges[name] = Gauge(name, family.documentation, tuple(labels))
                self.gauges[name].set(value, dict(labels))


@serve.ingress()
class Replica:
    """A whole server with its own workers.

    Raises UserError where a voice, the model or the token's file cannot be opened; Serve then gives the deployment up.
    """

    def __init__(self, settings: Settings, token_file: str = ""):
        self.settings = replace(settings, token=_token(token_file)) if token_file else settings

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve within the replica; it then runs the application's lifespan."""
        app = create_app(self.settings)
        app.add_middleware(Named, serve.get_replica_context().replica_id.unique_id)
        self.service = app.state.service
        self.published = Published(self.service.metrics.registry)
        return app

    async def check_health(self) -> None:
        """Called by Serve every ten seconds; a replica that fails three times is replaced. Raises RuntimeError."""
        self.published.update()
        if not self.service.ready:
            raise RuntimeError("the workers are not ready")


def application(settings: Settings, least: int, most: int, token_file: str = "") -> Application:
    """Between ``least`` and ``most`` replicas of the server; without the page where there may be more than one.

    The page keeps what a visitor does in one process, and nothing leads his next request to the same replica.
    """
    settings = replace(settings, page=settings.page and most == 1)
    deployment = serve.deployment(
        Replica,
        name="server",
        ray_actor_options={"num_cpus": cores(settings)},
        max_ongoing_requests=settings.waiting,
        max_queued_requests=settings.waiting * most,  # a burst that idle replicas could take counts as waiting, too
        backpressure_config={"status_code": 429, "retry_after_s": RETRY},
        autoscaling_config={
            "min_replicas": least, "max_replicas": most, "upscale_delay_s": UP, "downscale_delay_s": DOWN,
            "look_back_period_s": WINDOW,
            "target_ongoing_requests": min(2 * settings.workers, settings.waiting),  # one is said, the next is at hand
        },
        graceful_shutdown_timeout_s=settings.seconds + GRACE,
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=2,
    )  # fmt: skip
    return deployment.bind(settings, token_file)


def cores(settings: Settings) -> int:
    """That a replica takes."""
    return settings.workers * settings.threads_a_worker


def _token(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the token in {path} ({error}); put it there on every node") from None
