"""What the server can do, without HTTP: the API, the page and the tests ask the same object."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from time import perf_counter

from vitalk.deploy.runtime import Eye
from vitalk.errors import UserError, nearest
from vitalk.speech.voice import Spoken

from .guards import Gate
from .metrics import Metrics
from .schemas import STAND_INS, VoiceCard
from .seeing import Sight
from .settings import Settings
from .sounds import Encoder, Kind
from .workers import VoicePool, open_pools


@dataclass(frozen=True)
class Speech:
    """A text that is being said: its first sentence is there, the others come.

    rate: of the sound, Hz. parts: the sentences, in order.
    """

    rate: int
    parts: AsyncIterator[Spoken]


class Service:
    """Voices, an eye, the gate before them and the counters beside them.

    Raises UserError where a voice or the model cannot be opened.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.gate, self.metrics = Gate(settings.waiting), Metrics()
        self.sight = Sight(Eye.load(settings.model), settings.batch, settings.linger, settings.pixels)
        self.reading = ThreadPoolExecutor(1, "text")
        s = settings
        self.pools = open_pools(s.voices, s.workers, s.threads_a_worker, s.seconds, self.reading)
        self.metrics.watch(lambda: self.gate.inside, self.pools.items())
        self.open = False

    async def start(self) -> None:
        """Start the workers and wait until they are ready."""
        self.sight.start()
        await asyncio.gather(*(pool.start() for pool in self.pools.values()))
        self.open = True

    async def stop(self) -> None:
        """End the workers; what runs was waited for before."""
        self.open = False
        await self.sight.stop()
        for pool in self.pools.values():
            await pool.close()
        self.reading.shutdown(wait=False, cancel_futures=True)

    @property
    def ready(self) -> bool:
        """Whether requests can be answered."""
        return self.open and all(pool.ready for pool in self.pools.values())

    def voices(self) -> list[VoiceCard]:
        """Each voice, or each of its speakers as VOICE/SPEAKER; the first is the default."""
        cards = [
            VoiceCard(
                id=f"{name}/{who}" if who else name,
                name=name,
                lang=pool.voice.lang,
                rate=pool.voice.rate,
                follows=list(pool.voice.follows),
            )
            for name, pool in self.pools.items()
            for who in pool.voice.speakers or [""]
        ]
        cards[0].default = True
        return cards

    def find(self, voice: str) -> tuple[VoicePool, str | None]:
        """(Pool, speaker) of a voice's id; '' and OpenAI's names are the default. Raises UserError for others."""
        known = [card.id for card in self.voices()]
        if voice == "" or (voice in STAND_INS and voice not in known):
            voice = known[0]
        name, _, who = voice.partition("/")
        if voice not in known and name not in self.pools:
            raise UserError(f"there is no voice {voice[:60]!r}; there are {', '.join(known)}.{nearest(voice, known)}")
        pool = self.pools[name]
        if who and who not in pool.voice.speakers:
            raise UserError(f"the voice {name} has no speaker {who[:60]!r}; there are {', '.join(known)}")
        return pool, who or None

    async def speak(self, text: str, voice: str, factors: dict[str, float], lang: str | None = None) -> Speech:
        """Begin to say a text; returns once its first sentence is said.

        Raises UserError for texts and factors that cannot be said, Late and Lost as ``VoicePool``.
        """
        if len(text) > self.settings.characters:
            raise UserError(f"input has {len(text)} characters; give at most {self.settings.characters}")
        pool, speaker = self.find(voice)
        start = perf_counter()
        parts = self._timed(pool, pool.stream(text, factors, speaker, lang), start)
        first = await anext(parts)
        self.metrics.first.observe(perf_counter() - start)
        return Speech(pool.voice.rate, _with_first(first, parts))

    async def _timed(self, pool: VoicePool, parts: AsyncIterator[Spoken], start: float) -> AsyncIterator[Spoken]:
        said, deadline = 0.0, asyncio.get_running_loop().time() + self.settings.seconds
        async with aclosing(parts):
            while True:
                async with asyncio.timeout_at(deadline):
                    part = await anext(parts, None)
                if part is None:
                    break
                said += part.audio.seconds
                yield part
        name = pool.voice.name
        self.metrics.audio.labels(name).inc(said)
        self.metrics.factor.labels(name).observe((perf_counter() - start) / max(said, 1e-3))


async def _with_first(first: Spoken, rest: AsyncIterator[Spoken]) -> AsyncIterator[Spoken]:
    async with aclosing(rest):
        yield first
        async for part in rest:
            yield part


async def encoded(speech: Speech, kind: Kind) -> AsyncIterator[bytes]:
    """The bytes of a sound file, as they come."""
    encoder = await asyncio.to_thread(Encoder, kind, speech.rate)
    async with aclosing(speech.parts):
        async for part in speech.parts:
            if data := await asyncio.to_thread(encoder.feed, part.audio):
                yield data
    if data := await asyncio.to_thread(encoder.close):
        yield data


async def events(chunks: AsyncIterator[bytes], text: str) -> AsyncIterator[bytes]:
    """The same as the server-sent events of OpenAI's API. The tokens that it counts are characters and bytes here."""
    sent = 0
    async with aclosing(chunks):
        async for data in chunks:
            sent += len(data)
            yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
    usage = {"input_tokens": len(text), "output_tokens": sent, "total_tokens": len(text) + sent}
    yield _event({"type": "speech.audio.done", "usage": usage})


def _event(told: dict) -> bytes:
    return f"data: {json.dumps(told)}\n\n".encode()
