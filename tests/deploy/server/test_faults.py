"""What unkind clients do to a running server: it answers, and goes on answering."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings


def connection(address, seconds=10):
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=seconds)


def reply(made):
    data = b""
    while part := made.recv(65_536):
        data += part
    return data


def test_truncated_uploads_are_given_up(served, client):
    head = (
        b"POST /v1/vision/classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
    )
    with connection(served[1]) as made:
        made.sendall(head + b'{"image": "')
        assert reply(made).startswith(b"HTTP/1.1 408")
    with connection(served[1]) as made:
        made.sendall(head + b'{"image": "')  # and is gone
    assert client.get("/healthz").status_code == 200


def test_uploads_are_refused_by_their_length_before_they_come(served):
    head = b"POST /v1/vision/classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with connection(served[1]) as made:
        made.sendall(head + b"Content-Length: 1000000000\r\n\r\n")
        assert reply(made).startswith(b"HTTP/1.1 413")


def test_more_than_may_wait_are_told_to_come_again(served, client):
    service, _ = served
    text = "This is a sentence that takes a while. " * 40

    def ask(_):
        sent = {"model": "vitalk", "input": text, "voice": "vitalk", "response_format": "pcm"}
        return client.post("/v1/audio/speech", json=sent)

    with ThreadPoolExecutor(16) as many:
        answers = list(many.map(ask, range(16)))
    codes = [a.status_code for a in answers]
    assert set(codes) <= {200, 429} and codes.count(200) >= service.settings.waiting and 429 in codes
    assert len({len(a.content) for a in answers if a.status_code == 200}) == 1
    assert all(int(a.headers["retry-after"]) >= 1 for a in answers if a.status_code == 429)
    assert service.gate.inside == 0


def test_clients_that_leave_in_the_middle_free_their_place(served, client):
    service, _ = served
    sent = {"model": "vitalk", "input": "A long text. " * 100, "voice": "vitalk", "response_format": "wav"}
    for _ in range(5):
        with client.stream("POST", "/v1/audio/speech", json=sent) as answer:
            next(answer.iter_raw())
    end = time.monotonic() + 10
    while service.gate.inside and time.monotonic() < end:
        time.sleep(0.05)
    assert service.gate.inside == 0
    assert client.post("/v1/audio/speech", json={**sent, "input": "Hello."}).status_code == 200


@pytest.fixture(scope="module")
def schema(served):
    return schemathesis.openapi.from_url(f"{served[1]}/openapi.json")


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/vision/classify", "/v1/describe"])
def test_whatever_is_made_up_from_the_api_page_is_answered(schema, served, path):
    codes = set()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(case=schema[path]["POST"].as_strategy())
    def run(case):
        answer = case.call(base_url=served[1])
        codes.add(answer.status_code)
        assert answer.status_code < 500, answer.text

    run()
    assert codes and codes <= {200, 400, 413, 429}
    assert served[0].gate.inside == 0 and served[0].ready
