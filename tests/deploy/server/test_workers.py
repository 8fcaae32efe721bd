import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vitalk.deploy.server.workers import AHEAD, VoicePool, open_pools
from vitalk.errors import UserError
from vitalk.speech.voice import Voice, join

PLAIN = {"speed": 1.0, "pitch": 1.0, "energy": 1.0}
TEXT = "First comes this. Then that! And at last, the end?"


@pytest.fixture(scope="module")
def pool():
    pool = VoicePool("vitalk", 1, 1, 30.0, ThreadPoolExecutor(1))
    asyncio.run(pool.warm())
    yield pool
    pool.close()


async def collect(pool, text=TEXT, **how):
    return [part async for part in pool.stream(text, PLAIN, **how)]


def pid_of(pool):
    return next(iter(pool.pool._pool_manager.worker_manager.workers))


def test_it_says_what_the_voice_says_in_order(pool):
    parts = asyncio.run(collect(pool))
    own = Voice.load().speak(TEXT)
    assert [part.text for part in parts] == ["First comes this.", "Then that!", "And at last, the end?"]
    assert np.abs(join([part.audio for part in parts]).samples - own.samples).max() < 1e-5
    assert all(abs(part.seconds.sum() - part.audio.seconds) < 0.7 for part in parts[:-1])  # but for the pause


def test_a_killed_worker_is_replaced_and_its_sentence_said(pool):
    async def killed():
        task = asyncio.create_task(collect(pool, "A long sentence, which takes a while to be said. " * 20))
        await asyncio.sleep(0.3)
        os.kill(pid_of(pool), signal.SIGKILL)
        return await task

    before, first = pool.deaths, pid_of(pool)
    parts = asyncio.run(killed())
    assert len(parts) == 20 and len({len(part.audio.samples) for part in parts[:-1]}) == 1
    assert pool.deaths >= before and pid_of(pool) != first and pool.ready


def test_a_client_that_goes_away_takes_nothing_along(pool):
    async def left():
        parts = pool.stream("One. Two. Three. Four.", PLAIN)
        await anext(parts)
        await parts.aclose()
        return await collect(pool, "Still here.")

    before = pid_of(pool)
    assert len(asyncio.run(left())) == 1
    assert pid_of(pool) == before and pool.working <= AHEAD


@pytest.mark.parametrize(("text", "told"), [("?!", "nothing to say"), ("", "nothing to say")])
def test_texts_without_words(pool, text, told):
    with pytest.raises(UserError, match=told):
        asyncio.run(collect(pool, text))


def test_speakers_and_factors_are_checked_first(pool):
    with pytest.raises(UserError, match="has no speaker someone"):
        asyncio.run(collect(pool, speaker="someone"))
    with pytest.raises(UserError, match="speed must be from"):
        asyncio.run(anext(pool.stream(TEXT, {**PLAIN, "speed": 9.0})))


def test_voices_that_are_not_there():
    with pytest.raises(UserError, match="there is no voice nobody"):
        open_pools(("nobody",), 1, 1, 1.0, ThreadPoolExecutor(1))
    with pytest.raises(UserError, match="two voices are called vitalk"):
        open_pools(("vitalk", "vitalk"), 1, 1, 1.0, ThreadPoolExecutor(1))
