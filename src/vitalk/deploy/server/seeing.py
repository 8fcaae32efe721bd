"""The eye of the server: pictures that come within a few milliseconds are read in one batch."""

import asyncio
import base64
import binascii
from asyncio import Future, Queue, Task

import numpy as np

from vitalk.deploy.pictures import read_picture
from vitalk.deploy.runtime import Eye
from vitalk.errors import UserError

Seen = list[tuple[str, float]]


class Sight:
    """An eye that is asked by many at once.

    batch: pictures that are read together at most. linger: seconds that the first waits for others. pixels: of a
    picture at most. Pictures are unpacked in threads, the model runs in one, so that its own threads have the cores.
    """

    def __init__(self, eye: Eye, batch: int, linger: float, pixels: int):
        self.eye, self.batch, self.linger, self.pixels = eye, batch, linger, pixels
        self.queue: Queue[tuple[np.ndarray, Future[np.ndarray]]] = Queue()
        self.running: Task[None] | None = None

    def start(self) -> None:
        """Begin to read; called within the event loop."""
        self.running = asyncio.create_task(self._read())

    async def stop(self) -> None:
        """End reading."""
        if self.running is not None:
            self.running.cancel()
            await asyncio.gather(self.running, return_exceptions=True)

    async def see(self, data: bytes, k: int) -> Seen:
        """The ``k`` likeliest labels of the picture in the bytes of a file. Raises UserError for what is no picture."""
        image = await asyncio.to_thread(lambda: self.eye.preprocess(read_picture(data, self.pixels)))
        answer: Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((image, answer))
        return self.eye.likeliest(await answer, k)

    async def _read(self) -> None:
        while True:
            group = [await self.queue.get()]
            await asyncio.sleep(self.linger)
            while len(group) < self.batch and not self.queue.empty():
                group.append(self.queue.get_nowait())
            group = [(image, answer) for image, answer in group if not answer.done()]  # whose clients still wait
            if group:
                await self._answer(group)

    async def _answer(self, group: list[tuple[np.ndarray, Future[np.ndarray]]]) -> None:
        try:
            logits = await asyncio.to_thread(self.eye.logits, np.stack([image for image, _ in group]))
        except Exception as error:  # each of them is told; the reader goes on
            for _, answer in group:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), row in zip(group, logits, strict=True):
            if not answer.done():
                answer.set_result(row)


def from_base64(text: str) -> bytes:
    """The bytes of a picture in base64, with or without ``data:…;base64,`` before it. Raises UserError for others."""
    _, comma, after = text.partition(",")
    try:
        return base64.b64decode(after if comma else text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("image is no base64; send the file's bytes in base64, or the file itself as a form") from None
