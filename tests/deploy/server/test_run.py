"""The server as a process: how it starts, hangs up on silent clients, and ends."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

VITALK = [sys.executable, "-c", "from vitalk.cli import main; main()", "serve", "--no-page"]
SAID = {"model": "vitalk", "input": "A sentence that takes a while. " * 60, "voice": "vitalk", "response_format": "pcm"}


@pytest.fixture
def started():
    process = subprocess.Popen([*VITALK, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = re.match(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
    assert address, process.stderr.read()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            httpx.get(f"{address[0]}/readyz")
            break
        except httpx.TransportError:
            time.sleep(0.1)
    yield process, address[0]
    process.kill()
    process.wait()


def test_running_requests_are_finished_when_it_is_told_to_stop(started):
    process, address = started
    whole = len(httpx.post(f"{address}/v1/audio/speech", json=SAID, timeout=60).content)
    answers = []
    asked = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{address}/v1/audio/speech", json=SAID, timeout=60))
    )
    asked.start()
    end = time.monotonic() + 30
    while "vitalk_queue_length 1.0" not in httpx.get(f"{address}/metrics").text:
        assert time.monotonic() < end, "the request never came in"
    process.send_signal(signal.SIGTERM)
    asked.join(60)
    assert [len(answer.content) for answer in answers] == [whole]
    assert process.wait(30) in (0, -signal.SIGTERM)
    assert "Traceback" not in process.stderr.read()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{address}/healthz")


def test_an_address_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run([*VITALK, "--port", str(taken.getsockname()[1])], capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"vitalk: cannot listen on 127.0.0.1 port \d+ \(.*\); choose another --port\n", done.stderr)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--voice", "nobody"], "there is no voice nobody"),
        (["--model", "nothing.onnx"], "there is no model"),
        (["--host", "300.0.0.1"], "cannot listen on 300.0.0.1"),
        (["--token", " "], "the token must be"),
    ],
)
def test_what_cannot_be_served(more, told):
    done = subprocess.run([*VITALK, "--port", "0", *more], capture_output=True, text=True)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1


def test_silent_connections_are_hung_up_on():
    from vitalk.deploy.server import Settings, create_app
    from vitalk.deploy.server.run import patient

    import uvicorn  # isort: skip

    app = create_app(Settings(page=False))
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=patient(1.5), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    for said in (b"", b"GET / HTTP/1.1\r\nX-Slow: "):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as made:
            made.sendall(said)
            assert made.recv(100) == b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as made:
        made.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert made.recv(100).startswith(b"HTTP/1.1 200")
    server.should_exit = True
    thread.join(10)
