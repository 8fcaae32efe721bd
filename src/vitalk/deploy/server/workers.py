"""Voices in processes of their own: one pool a voice; a worker that dies is replaced, and its sentence said again."""

import asyncio
import multiprocessing
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from vitalk.errors import UserError
from vitalk.speech.text.front import Utterance
from vitalk.speech.voice import RANGES, Spoken, Voice, voices

AHEAD = 2  # sentences of one request in work at a time, so that a long text does not keep others waiting
TRIES = 3  # workers that may die of one sentence
WARM = "1, 2, 3."  # digits are read in every language

_voice: Voice | None = None  # of a worker process


def open_any(source: str, threads: int | None = None) -> Voice:
    """A voice by name or file, or that of a run folder in torch. Raises UserError where there is none."""
    if Path(source).is_dir() or source.endswith(".safetensors"):
        from vitalk.trained import trained_voice

        return trained_voice(source)
    return Voice.load(source, threads)


def _start(source: str, threads: int) -> None:
    global _voice
    _voice = open_any(source, threads)


def _say(utterance: Utterance, factors: dict[str, float], speaker: str | None) -> Spoken:
    return _voice.say(utterance, factors, speaker)


class Late(Exception):
    """A sentence took longer than it may."""


class Lost(Exception):
    """Every worker that tried a sentence died."""


class VoicePool:
    """A voice that says sentences in worker processes.

    source: as ``open_any`` takes it. workers, threads: processes, and onnxruntime's threads in each. seconds: for one
    sentence; a worker that takes longer is ended and replaced. reading: where texts are cut into sentences, one at a
    time, since espeak is one for the whole process.
    """

    def __init__(self, source: str, workers: int, threads: int, seconds: float, reading: ThreadPoolExecutor):
        self.voice, self.seconds, self.reading, self.workers = open_any(source, 1), seconds, reading, workers
        self.pool = ProcessPool(
            workers, initializer=_start, initargs=(source, threads), context=multiprocessing.get_context("spawn")
        )
        self.deaths = self.working = 0

    async def warm(self) -> None:
        """Have every worker say something, so that the first request finds them ready."""
        utterance = next(self.voice.utterances(WARM))
        factors = dict.fromkeys(RANGES, 1.0)
        await asyncio.gather(*(self.say(utterance, factors) for _ in range(2 * self.workers)))

    async def say(self, utterance: Utterance, factors: Mapping[str, float], speaker: str | None = None) -> Spoken:
        """Say one sentence. Raises UserError as ``Voice.say``, Late and Lost."""
        self.working += 1
        try:
            for _ in range(TRIES):
                future = self.pool.schedule(_say, args=(utterance, dict(factors), speaker), timeout=self.seconds)
                try:
                    # A client that goes away must not take the worker along, which cancelling would end.
                    return await asyncio.shield(asyncio.wrap_future(future))
                except ProcessExpired:
                    self.deaths += 1
                except TimeoutError:
                    raise Late from None
            raise Lost
        finally:
            self.working -= 1

    async def stream(
        self, text: str, factors: Mapping[str, float], speaker: str | None = None, lang: str | None = None
    ) -> AsyncIterator[Spoken]:
        """Say a text sentence by sentence, in order. Raises UserError as ``Voice.stream``, Late and Lost."""
        self.voice.check(factors, speaker)
        utterances = self.voice.utterances(text, lang=lang)
        running: deque[asyncio.Task[Spoken]] = deque()
        try:
            while True:
                while len(running) < AHEAD and (utterance := await self._next(utterances)) is not None:
                    running.append(asyncio.create_task(self.say(utterance, factors, speaker)))
                if not running:
                    return
                yield await running.popleft()
        finally:
            for task in running:
                task.cancel()

    async def _next(self, utterances: Iterator[Utterance]) -> Utterance | None:
        return await asyncio.get_running_loop().run_in_executor(self.reading, next, utterances, None)

    @property
    def ready(self) -> bool:
        """Whether sentences can be said."""
        return bool(self.pool.active)

    def close(self) -> None:
        """End the workers."""
        self.pool.stop()
        self.pool.join()


def open_pools(
    sources: tuple[str, ...], workers: int, threads: int, seconds: float, reading: ThreadPoolExecutor
) -> dict[str, VoicePool]:
    """Pools by the names of their voices; without sources those of every installed voice, the default first.

    Raises UserError for voices that cannot be opened, and for two of one name.
    """
    if not sources:
        sources = tuple(sorted(voices(), key=lambda name: name != "vitalk"))
    pools: dict[str, VoicePool] = {}
    for source in sources:
        pool = VoicePool(source, workers, threads, seconds, reading)
        if pool.voice.name in pools:
            raise UserError(f"two voices are called {pool.voice.name}; serve one of them")
        pools[pool.voice.name] = pool
    if not pools:
        raise UserError("no voice is installed; name a voice file with --voice")
    return pools
