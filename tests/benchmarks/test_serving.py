import asyncio
import json
import random

import pytest

from vitalk.benchmarks.serving import Heard, kills, load, many, running, shown, steadiness, summary, throughput
from vitalk.benchmarks.serving_faults import body, fuzzed


def test_a_server_is_measured_and_ended():
    with running() as server:
        heard = asyncio.run(many(server.address, 6, 3))
        assert heard.codes == {200: 6} and len(heard.first) == 6 and 0.2 * 6 < heard.audio < 2 * 6
        short = asyncio.run(load(server.address, 2, 0.5))
        assert set(short.codes) == {200} and min(short.first) > 0
        assert len(server.workers()) == 1 and server.resident() > 5e7
    assert not server.process.is_running()


def test_refusals_are_counted_and_waited_for():
    with running("--waiting", "1") as server:
        heard = asyncio.run(load(server.address, 6, 1.5))
    assert set(heard.codes) == {200, 429}


def test_killed_workers_lose_nothing():
    found = kills(1, 2.0)
    assert found["killed"] == 1 and found["lost"] == 0 and found["workers_after"] == 2
    assert found["requests"] > 10 and "200" in found["codes"]


def test_rows():
    row = throughput(1, 2, 0.5)
    assert row["workers"] == 1 and row["audio_a_second"] > 0 and row["first_audio_p50"] <= row["first_audio_p95"]
    steady = steadiness(10)
    assert steady["requests"] == 10 and steady["growth_bytes"] == steady["after_bytes"] - steady["before_bytes"]


def test_unkind_clients():
    with running() as server:
        codes = fuzzed(server, 60)
    assert sum(codes.values()) == 60 and {200, 400} <= set(codes) <= {200, 400, 413, 429}


def test_random_bodies_are_the_same_each_time_and_mostly_json():
    made = [[body(rng, "/v1/describe") for _ in range(100)] for rng in (random.Random(3), random.Random(3))]
    assert made[0] == made[1]

    def parses(text):
        try:
            return isinstance(json.loads(text), dict)
        except ValueError:
            return False

    assert 50 < sum(map(parses, made[0])) < 95


@pytest.mark.parametrize(("errors", "told"), [(0, "none of which the server failed at"), (2, "failing at slow")])
def test_the_summary_says_what_happened(errors, told):
    steady = {"requests": 10, "after_bytes": 2e8, "growth_bytes": -1e6}
    killed = {"killed": 3, "lost": 1, "requests": 50, "workers_after": 2}
    unkind = [{"fault": "slow", "requests": 5, "server_errors": errors}]
    text = summary(steady, killed, unkind)
    assert told in text and "200 MB, -1.0 MB" in text and "1 of 50 requests lost" in text


def test_codes_are_shown_in_order():
    heard = Heard()
    heard.codes.update([429, 200, 200, 0])
    assert shown(heard.codes) == "cut off: 1, 200: 2, 429: 1"
