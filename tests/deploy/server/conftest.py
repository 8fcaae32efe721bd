"""One server for the tests of a process: the packaged voice and eye, without the page."""

import threading
import time

import pytest
import uvicorn

from vitalk.deploy.server import Settings, create_app


@pytest.fixture(scope="session")
def served():
    """(The application's service, its address), answering on a free port."""
    app = create_app(Settings(page=False, patience=2.0, pixels=1_000_000, waiting=8))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started and time.monotonic() < end:
        time.sleep(0.05)
    assert server.started, "the server did not start within a minute"
    port = server.servers[0].sockets[0].getsockname()[1]
    yield app.state.service, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def client(served):
    """An HTTP client of it."""
    import httpx

    with httpx.Client(base_url=served[1], timeout=30) as client:
        yield client
