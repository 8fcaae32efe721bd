"""The server on Ray: one cluster of two replicas is started on this machine, asked by several clients, and ended."""

import base64
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import ValidationError

from vitalk.errors import UserError

if find_spec("ray") is None:  # not imported yet, since the server sets Ray's environment before
    pytest.skip("ray is not installed", allow_module_level=True)

import httpx
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, Counter

from vitalk.deploy.ray_serve import NAME, Arguments, _wait, app, finish, on_this_machine
from vitalk.deploy.server import Settings, create_app

PICTURE = Path(__file__).parents[2] / "examples" / "cat.png"
SHORT = {"model": "tts-1", "voice": "alloy", "input": "One cat. Two cats.", "response_format": "pcm"}
LONG = {**SHORT, "input": "This sentence is said to have something to wait for. " * 12}
FAULTS = [
    ("/v1/audio/speech", {**SHORT, "speed": 99}), ("/v1/audio/speech", {**SHORT, "voice": "nobody"}),
    ("/v1/audio/speech", {**SHORT, "input": ""}), ("/v1/vision/classify", {"image": "no base64"}),
]  # fmt: skip


@pytest.fixture
def client():
    """A client of two replicas, each of which takes two requests at a time."""
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with on_this_machine(2, "127.0.0.1", port, 65):
        serve.run(app(Arguments(min_replicas=2, max_replicas=2, waiting=2, seconds=60)), name=NAME)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client


def test_two_replicas_are_one_server(client):
    both_answer(client)
    sound_arrives_while_the_rest_is_said(client)
    events_arrive(client)
    pictures_are_named(client)
    faults_look_as_without_ray(client)
    too_many_are_told_to_come_again(client)
    the_last_answer_is_finished(client)


def both_answer(client):
    seen = {client.get("/v1/models").headers["x-replica"] for _ in range(30)}
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda _: client.post("/v1/audio/speech", json=SHORT), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.content for answer in answers}) == 1, "the same text is the same sound in every replica"
    assert len(seen | {answer.headers["x-replica"] for answer in answers}) == 2
    assert client.get("/").status_code == 404, "no page, which would lose its visitors between two replicas"
    assert client.get("/readyz").json() == {"status": "ready"}


def sound_arrives_while_the_rest_is_said(client):
    start, arrivals = time.perf_counter(), []
    with client.stream("POST", "/v1/audio/speech", json=LONG) as answer:
        assert answer.headers["content-type"] == "audio/pcm"
        arrivals = [(time.perf_counter() - start, len(part)) for part in answer.iter_raw()]
    assert len(arrivals) > 10 and sum(size for _, size in arrivals) > 24_000
    assert arrivals[0][0] < arrivals[-1][0] / 2


def events_arrive(client):
    answer = client.post("/v1/audio/speech", json={**SHORT, "stream_format": "sse"})
    told = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    assert [event["type"] for event in told] == ["speech.audio.delta"] * (len(told) - 1) + ["speech.audio.done"]
    sound = b"".join(base64.b64decode(event["audio"]) for event in told[:-1])
    assert sound == client.post("/v1/audio/speech", json=SHORT).content


def pictures_are_named(client):
    form = client.post("/v1/vision/classify", files={"image": PICTURE.read_bytes()}, data={"top": "2"}).json()
    coded = base64.b64encode(PICTURE.read_bytes()).decode()
    assert form == client.post("/v1/vision/classify", json={"image": coded, "top": 2}).json()
    assert len(form["labels"]) == 2


def faults_look_as_without_ray(client):
    plain = TestClient(create_app(Settings(page=False, waiting=2)))
    for path, body in FAULTS:
        here, there = client.post(path, json=body), plain.post(path, json=body)
        assert here.status_code == there.status_code == 400
        assert here.json() == there.json() and here.json()["error"]["type"] == "invalid_request_error"


def too_many_are_told_to_come_again(client):
    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(lambda _: client.post("/v1/audio/speech", json=LONG), range(20)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) <= 16, "four wait at least, and go to a replica"
    assert {answer.status_code for answer in refused} == {429}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    assert client.post("/v1/audio/speech", json=SHORT).status_code == 200


def the_last_answer_is_finished(client):
    whole = client.post("/v1/audio/speech", json=LONG).content
    with client.stream("POST", "/v1/audio/speech", json=LONG) as answer:
        parts = answer.iter_raw()
        got = next(parts)
        ending = threading.Thread(target=finish, args=(60,))
        ending.start()
        got += b"".join(parts)
    ending.join(60)
    assert got == whole and not ending.is_alive()
    assert client.get("/v1/models").status_code == 404


def test_arguments_are_settings():
    assert Arguments(workers="2", voices=["vitalk"]).workers == 2
    with pytest.raises(ValidationError, match="wrokers"):
        Arguments(wrokers=2)
    with pytest.raises(ValidationError, match="token"):
        Arguments(token="secret")
    with pytest.raises(UserError, match="max_replicas 2"):
        app(Arguments(min_replicas=3, max_replicas=2))
    with pytest.raises(UserError, match="waiting must be 1 or more"):
        app(Arguments(waiting=0))


def test_a_replica_without_its_token_does_not_start(tmp_path):
    from vitalk.deploy import ray_replica

    with pytest.raises(UserError, match="on every node"):
        ray_replica._token(str(tmp_path / "none"))
    (tmp_path / "token").write_text("secret\n")
    assert ray_replica._token(str(tmp_path / "token")) == "secret"


def test_counters_are_told_to_ray(monkeypatch):
    from vitalk.deploy import ray_replica

    told = {}

    class Gauge:
        def __init__(self, name, description, tag_keys):
            self.name, self.keys = name, set(tag_keys)

        def set(self, value, tags):
            assert set(tags) == self.keys
            told[self.name, *sorted(tags.items())] = value

    monkeypatch.setattr(ray_replica, "Gauge", Gauge)
    registry = CollectorRegistry()
    asked = Counter("vitalk_requests", "Requests.", ["code"], registry=registry)
    published = ray_replica.Published(registry)
    asked.labels("200").inc(3)
    published.update()
    asked.labels("429").inc()
    published.update()
    assert told == {("vitalk_requests_total", ("code", "200")): 3, ("vitalk_requests_total", ("code", "429")): 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_waits_for_a_signal(number):
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
        start = time.perf_counter()
        _wait()
        assert time.perf_counter() - start >= 0.15
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
