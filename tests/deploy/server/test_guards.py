import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from vitalk.deploy.server.guards import BodyGuard, Gate


def through(parts, declared=None, most=10, patience=0.05, pauses=()):
    """What an application reads of a body that comes in parts behind the guard; pauses: seconds before each."""
    got = []

    async def app(scope, receive, send):
        more = True
        while more:
            message = await receive()
            got.append(message.get("body", b""))
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    messages = [{"type": "http.request", "body": p, "more_body": i < len(parts) - 1} for i, p in enumerate(parts)]
    waits, sent = [*pauses, *[0] * len(parts)], []

    async def receive():
        await asyncio.sleep(waits.pop(0))
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    headers = [] if declared is None else [(b"content-length", declared)]
    guard = BodyGuard(app, lambda path: most, patience, 10 * patience)
    asyncio.run(guard({"type": "http", "path": "/", "headers": headers}, receive, send))
    return b"".join(got), sent


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=5))
def test_bodies_pass_up_to_the_limit_and_no_further(parts):
    whole = b"".join(parts)
    if len(whole) <= 10:
        assert through(parts)[0] == whole
    else:
        with pytest.raises(HTTPException) as refused:
            through(parts)
        assert refused.value.status_code == 413


def test_a_declared_length_is_enough_to_refuse():
    with pytest.raises(HTTPException) as refused:
        through([b""], declared=b"11")
    assert refused.value.status_code == 413
    assert through([b"1"], declared=b"nonsense")[0] == b"1"


def test_clients_that_stop_are_given_up():
    with pytest.raises(HTTPException) as refused:
        through([b"a", b"b"], pauses=[0, 0.3])
    assert refused.value.status_code == 408


def test_clients_that_trickle_are_given_up():
    with pytest.raises(HTTPException) as refused:
        through([b""] * 40, pauses=[0.03] * 40)
    assert refused.value.status_code == 408


def test_browsers_are_told_to_load_nothing_from_elsewhere():
    _, (start,) = through([b""])
    policy = dict(start["headers"])[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy and "http" not in policy


def test_the_gate_counts_who_is_inside():
    gate = Gate(2)
    with gate.entered():
        with gate.entered():
            with pytest.raises(HTTPException) as refused, gate.entered():
                pass
            assert refused.value.status_code == 429 and int(refused.value.headers["Retry-After"]) >= 1
        with gate.entered():
            assert gate.inside == 2
    assert gate.inside == 0


def test_the_gate_is_left_whatever_happens():
    gate = Gate(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), gate.entered():
            1 / 0  # noqa: B018
    assert gate.inside == 0
