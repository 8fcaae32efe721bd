"""Voices in processes of their own: one pool a voice; a worker that dies is replaced, and its sentence said again."""

import asyncio
import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from vitalk.errors import UserError
from vitalk.speech.text.front import Utterance
from vitalk.speech.voice import RANGES, Spoken, Voice, voices

T = TypeVar("T")
AHEAD = 2  # sentences of one request in work at a time, so that a long text does not keep others waiting
TRIES = 3  # workers that may die of one sentence
PAUSES = (0.0, 1.0, 5.0, 20.0, 60.0)  # seconds before a worker that died of its start is started again
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells all; what runs is finished before workers end
    _voice = open_any(source, threads)


def _say(utterance: Utterance, factors: dict[str, float], speaker: str | None) -> Spoken:
    return _voice.say(utterance, factors, speaker)


class Late(Exception):
    """A sentence took longer than it may."""


class Lost(Exception):
    """Every worker that tried a sentence died."""


class Worker:
    """One process with a voice in it, and pipes of its own: whatever becomes of it, no other is held up."""

    def __init__(self, source: str, threads: int):
        spawn = multiprocessing.get_context("spawn")
        self.executor = ProcessPoolExecutor(1, spawn, initializer=_start, initargs=(source, threads))
        self.pid = 0

    async def started(self) -> Self:
        """Wait until the process is there and its voice loaded. Raises BrokenProcessPool where it dies of that."""
        self.pid = await asyncio.wrap_future(self.executor.submit(os.getpid))
        return self

    async def run(self, call: Callable[..., Spoken], *given: Any) -> Spoken:
        """What the call returns in the process. Raises BrokenProcessPool where the process dies."""
        return await asyncio.wrap_future(self.executor.submit(call, *given))

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self.pid in {child.pid for child in multiprocessing.active_children()}

    def end(self) -> None:
        """End the process at once."""
        with suppress(ProcessLookupError):
            if self.alive:
                os.kill(self.pid, signal.SIGTERM)
        self.executor.shutdown(wait=False, cancel_futures=True)


class VoicePool:
    """A voice that says sentences in worker processes.

    source: as ``open_any`` takes it. workers, threads: processes, and onnxruntime's threads in each. seconds: for one
    sentence; a worker that takes longer is ended and replaced. reading: where texts are cut into sentences, one at a
    time, since espeak is one for the whole process.
    """

    def __init__(self, source: str, workers: int, threads: int, seconds: float, reading: ThreadPoolExecutor):
        self.voice, self.seconds, self.reading = open_any(source, 1), seconds, reading
        self.source, self.count, self.threads = source, workers, threads
        self.deaths = self.working = 0
        self.workers: set[Worker] = set()
        self.idle: asyncio.Queue[Worker] = asyncio.Queue()
        self.tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Start the workers and have each say something, so that the first request finds them ready.

        Raises BrokenProcessPool where they die of it.
        """
        utterance = await asyncio.get_running_loop().run_in_executor(self.reading, next, self.voice.utterances(WARM))
        factors = dict.fromkeys(RANGES, 1.0)
        for worker in await asyncio.gather(*(self._new() for _ in range(self.count))):
            await worker.run(_say, utterance, factors, None)
            self.idle.put_nowait(worker)
        self._keep(self._watch())

    async def say(self, utterance: Utterance, factors: Mapping[str, float], speaker: str | None = None) -> Spoken:
        """Say one sentence. Raises UserError as ``Voice.say``, Late and Lost."""
        self.working += 1
        try:
            for _ in range(TRIES):
                worker = await self.idle.get()
                # A client that goes away must not leave its worker out: the task gives it back.
                try:
                    return await asyncio.shield(self._keep(self._said(worker, utterance, dict(factors), speaker)))
                except BrokenProcessPool:
                    continue
            raise Lost
        finally:
            self.working -= 1

    async def _said(self, worker: Worker, *given: Any) -> Spoken:
        try:
            async with asyncio.timeout(self.seconds):
                said = await worker.run(_say, *given)
        except BrokenProcessPool:
            self._keep(self._replace(worker))
            raise
        except TimeoutError:
            self._keep(self._replace(worker))
            raise Late from None
        except Exception:
            self.idle.put_nowait(worker)
            raise
        self.idle.put_nowait(worker)
        return said

    async def _new(self) -> Worker:
        worker = Worker(self.source, self.threads)
        await worker.started()
        self.workers.add(worker)
        return worker

    async def _replace(self, worker: Worker) -> None:
        """Put another worker in the place of one that died or must; where that dies too, try again, ever later."""
        self.workers.discard(worker)
        worker.end()
        self.deaths += 1
        for pause in PAUSES:
            try:
                self.idle.put_nowait(await self._new())
                return
            except BrokenProcessPool:
                await asyncio.sleep(pause)
        logging.getLogger(__name__).error("a worker of the voice %s cannot be started again", self.voice.name)

    async def _watch(self) -> None:
        """Replace workers that die while they have nothing to do."""
        while True:
            await asyncio.sleep(1)
            waiting = [self.idle.get_nowait() for _ in range(self.idle.qsize())]
            for worker in waiting:
                if worker.alive:
                    self.idle.put_nowait(worker)
                else:
                    self._keep(self._replace(worker))

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that is not forgotten before it is done."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever waits for it is told, and where nobody does it does not matter

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
        return any(worker.alive for worker in self.workers)

    async def close(self) -> None:
        """End the workers."""
        for task in (*self.tasks,):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for worker in (*self.workers,):
            worker.end()
        self.workers.clear()


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
