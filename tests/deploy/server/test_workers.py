import asyncio
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vitalk.deploy.server.workers import Late, VoicePool, open_pools
from vitalk.errors import UserError
from vitalk.speech.voice import Voice, join

PLAIN = {"speed": 1.0, "pitch": 1.0, "energy": 1.0}
TEXT = "First comes this. Then that! And at last, the end?"


class Running:
    """A pool in an event loop of its own."""

    def __init__(self, **how):
        self.runner = asyncio.Runner()
        told = {"source": "vitalk", "workers": 1, "threads": 1, "seconds": 30.0, "reading": ThreadPoolExecutor(1)}
        self.pool = VoicePool(**{**told, **how})
        self.run(self.pool.start())

    def run(self, work):
        return self.runner.run(work)

    def say(self, text=TEXT, factors=PLAIN, **how):
        async def collect():
            return [part async for part in self.pool.stream(text, factors, **how)]

        return self.run(collect())

    def pids(self):
        return {worker.pid for worker in self.pool.workers}

    def close(self):
        self.run(self.pool.close())
        self.runner.close()


@pytest.fixture(scope="module")
def running():
    running = Running()
    yield running
    running.close()


async def gone(pool, pids, seconds=20):
    """Wait until other workers stand in the place of these."""
    end = time.monotonic() + seconds
    while pids & {w.pid for w in pool.workers} or len(pool.workers) < pool.count or pool.idle.qsize() < pool.count:
        assert time.monotonic() < end, "the workers were not replaced"
        await asyncio.sleep(0.05)


def test_it_says_what_the_voice_says_in_order(running):
    parts = running.say()
    own = Voice.load().speak(TEXT)
    assert [part.text for part in parts] == ["First comes this.", "Then that!", "And at last, the end?"]
    assert np.abs(join([part.audio for part in parts]).samples - own.samples).max() < 1e-5
    assert all(abs(part.seconds.sum() - part.audio.seconds) < 0.7 for part in parts[:-1])  # but for the pause


def test_a_killed_worker_is_replaced_and_its_sentence_said(running):
    async def killed():
        parts = []
        async for part in running.pool.stream("A long sentence, which takes a while to be said. " * 20, PLAIN):
            parts.append(part)
            if len(parts) in (3, 9):
                for worker in running.pool.workers:
                    os.kill(worker.pid, signal.SIGKILL)
        return parts

    before, first = running.pool.deaths, running.pids()
    parts = running.run(killed())
    assert len(parts) == 20 and len({len(part.audio.samples) for part in parts[:-1]}) == 1
    assert running.pool.deaths >= before + 2 and not running.pids() & first and running.pool.ready


def test_workers_that_die_while_idle_are_replaced(running):
    first = running.pids()
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    running.run(gone(running.pool, first))
    assert len(running.say("Still here.")) == 1


def test_a_client_that_goes_away_takes_nothing_along(running):
    async def left():
        parts = running.pool.stream("One. Two. Three. Four.", PLAIN)
        await anext(parts)
        await parts.aclose()

    before = running.pids()
    running.run(left())
    assert len(running.say("Still here.")) == 1
    assert running.pids() == before and running.pool.working == 0 and running.pool.idle.qsize() == 1


def test_sentences_that_take_too_long_cost_their_worker_and_no_other():
    slow = Running(seconds=0.0)
    try:
        first = slow.pids()
        with pytest.raises(Late):
            slow.say()
        slow.run(gone(slow.pool, first))
        slow.pool.seconds = 30.0
        assert len(slow.say()) == 3
    finally:
        slow.close()


def test_nothing_is_left_when_it_is_closed():
    ended = Running(workers=2)
    pids = ended.pids()
    assert len(pids) == 2
    ended.close()
    end = time.monotonic() + 10
    while pids & {child.pid for child in multiprocessing.active_children()} and time.monotonic() < end:
        time.sleep(0.05)
    assert not pids & {child.pid for child in multiprocessing.active_children()} and not ended.pool.ready


@pytest.mark.parametrize(("text", "told"), [("?!", "nothing to say"), ("", "nothing to say")])
def test_texts_without_words(running, text, told):
    with pytest.raises(UserError, match=told):
        running.say(text)


def test_speakers_and_factors_are_checked_first(running):
    with pytest.raises(UserError, match="has no speaker someone"):
        running.say(speaker="someone")
    with pytest.raises(UserError, match="speed must be from"):
        running.say(factors={**PLAIN, "speed": 9.0})


def test_voices_that_are_not_there():
    with pytest.raises(UserError, match="there is no voice nobody"):
        open_pools(("nobody",), 1, 1, 1.0, ThreadPoolExecutor(1))
    with pytest.raises(UserError, match="two voices are called vitalk"):
        open_pools(("vitalk", "vitalk"), 1, 1, 1.0, ThreadPoolExecutor(1))
