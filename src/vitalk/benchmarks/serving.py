"""The server under load: how fast, how even, how steady, and what becomes of requests whose worker is killed."""

import asyncio
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import psutil

from vitalk.errors import UserError
from vitalk.measurement import machine

RATE = 24_000
CLIENTS, SOAK, SOAKING, KILLS = 64, 5000, 16, 3
TEXTS = (
    "The train to the coast leaves at nine. Please have your tickets ready.",
    "It rained all night. In the morning the garden was full of birds, and nobody wanted to stay inside.",
    "Yes, of course.",
    "She opened the letter slowly. It was from her brother. He was coming home at last!",
)
NOTE = (
    "{clients} clients that ask again at once, for {seconds:g} s on one machine with the server: first audio is the "
    "time from a request to the first bytes of its sound (raw samples); codes: answers by status. Steadiness: {soak} "
    "short requests after 500 others, {soaking} at a time; the memory is that of the server and its workers. "
    "Kills: {kills} workers killed while {soaking} clients speak; lost: requests without a whole answer."
)


@dataclass
class Server:
    """A ``vitalk serve`` of one's own."""

    process: psutil.Process
    address: str

    def resident(self) -> int:
        """Bytes of memory that it and its workers hold."""
        members = [self.process, *self.process.children(recursive=True)]
        return sum(p.memory_info().rss for p in members if p.is_running())

    def workers(self) -> list[psutil.Process]:
        """Its synthesis processes."""
        return [p for p in self.process.children() if "spawn_main" in " ".join(p.cmdline())]


@contextmanager
def running(*options: str) -> Iterator[Server]:
    """A server on a free port of this machine, ready to answer; ended at the end."""
    command = [
        sys.executable,
        "-c",
        "from vitalk.cli import main; main()",
        "serve",
        "--no-page",
        "--port",
        "0",
        *options,
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        found = re.match(r"http://[\d.]+:\d+", child.stdout.readline())
        if found is None:
            raise UserError(f"the server did not start; run {' '.join(command[2:])} to see why")
        for _ in range(600):
            try:
                if httpx.get(f"{found[0]}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield Server(psutil.Process(child.pid), found[0])
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()


@dataclass
class Heard:
    """What clients got: answers by code (0: none, or cut off), seconds to first audio, seconds of sound."""

    codes: Counter[int] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    audio: float = 0.0


async def ask(client: httpx.AsyncClient, text: str, heard: Heard) -> float:
    """Ask for a text once; the seconds after which to come again where the server is full, else 0."""
    sent = {"model": "vitalk", "voice": "alloy", "input": text, "response_format": "pcm"}
    start, got, later = time.perf_counter(), 0, 0.0
    try:
        async with client.stream("POST", "/v1/audio/speech", json=sent) as answer:
            async for data in answer.aiter_raw():
                if answer.status_code == 200 and not got:
                    heard.first.append(time.perf_counter() - start)
                got += len(data)
            heard.codes[answer.status_code] += 1
            if answer.status_code == 200:
                heard.audio += got / 2 / RATE
            later = float(answer.headers.get("retry-after", 0))
    except httpx.HTTPError:
        heard.codes[0] += 1
    return later


async def load(address: str, clients: int, seconds: float) -> Heard:
    """So many clients, each asking again as soon as it is answered, for so long; none longer than 2 minutes more."""
    heard, end = Heard(), time.perf_counter() + seconds
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:

        async def one(number: int) -> None:
            while time.perf_counter() < end:
                later = await ask(client, TEXTS[number % len(TEXTS)], heard)
                number += 1
                await asyncio.sleep(min(later, max(end - time.perf_counter(), 0)))

        await asyncio.gather(*(one(i) for i in range(clients)))
    return heard


async def many(address: str, count: int, at_once: int, text: str = "Yes.") -> Heard:
    """So many requests, some at once."""
    heard, left = Heard(), iter(range(count))
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:

        async def one() -> None:
            for _ in left:
                await ask(client, text, heard)

        await asyncio.gather(*(one() for _ in range(at_once)))
    return heard


def throughput(workers: int, clients: int, seconds: float) -> dict[str, Any]:
    """The row of a server with so many workers."""
    with running("--workers", str(workers)) as server:
        asyncio.run(many(server.address, 20, 4))
        start = time.perf_counter()
        heard = asyncio.run(load(server.address, clients, seconds))
        spent = time.perf_counter() - start
        return {
            "workers": workers, "requests": sum(heard.codes.values()), "codes": shown(heard.codes),
            "audio_a_second": heard.audio / spent, "first_audio_p50": float(np.percentile(heard.first, 50)),
            "first_audio_p95": float(np.percentile(heard.first, 95)), "resident_bytes": server.resident(),
        }  # fmt: skip


def steadiness(count: int) -> dict[str, Any]:
    """Memory before and after so many requests, bytes: medians of five looks each."""
    with running() as server:
        asyncio.run(many(server.address, 500, SOAKING))
        before = settled(server)
        heard = asyncio.run(many(server.address, count, SOAKING))
        after = settled(server)
    return {
        "requests": count, "codes": shown(heard.codes), "before_bytes": before, "after_bytes": after,
        "growth_bytes": after - before,
    }  # fmt: skip


def settled(server: Server) -> int:
    """The server's memory, once it has nothing to do."""
    looks = []
    for _ in range(5):
        time.sleep(0.4)
        looks.append(server.resident())
    return int(statistics.median(looks))


def kills(count: int, seconds: float) -> dict[str, Any]:
    """What clients got while so many workers were killed, one after the other."""

    async def run(server: Server) -> Heard:
        speaking = asyncio.create_task(load(server.address, SOAKING, seconds))
        for _ in range(count):
            await asyncio.sleep(seconds / (count + 1))
            for worker in server.workers()[:1]:
                worker.kill()
                killed.append(worker.pid)
        return await speaking

    killed: list[int] = []
    with running("--workers", "2") as server:
        asyncio.run(many(server.address, 20, 4))
        heard = asyncio.run(run(server))
        time.sleep(2)
        alive = [worker.pid for worker in server.workers()]
    answered = heard.codes[200] + heard.codes[429]
    return {
        "killed": len(killed), "requests": sum(heard.codes.values()), "codes": shown(heard.codes),
        "lost": sum(heard.codes.values()) - answered, "workers_after": len(set(alive) - set(killed)),
    }  # fmt: skip


def shown(codes: Counter[int]) -> str:
    """Codes and how often each came."""
    return ", ".join(f"{code or 'cut off'}: {count}" for code, count in sorted(codes.items()))


def compare(seconds: float, workers: list[int], clients: int = CLIENTS, soak: int = SOAK) -> dict[str, Any]:
    """A record: a row a number of workers, then steadiness, kills and faults.

    seconds: of load a row.
    """
    from rich.console import Console

    from .serving_faults import faults

    console = Console(stderr=True)
    rows = []
    for count in workers:
        console.print(f"{clients} clients, {count} workers, {seconds:g} s")
        rows.append(throughput(count, clients, seconds))
    console.print(f"{soak} requests")
    steady = steadiness(soak)
    console.print(f"{KILLS} workers are killed")
    killed = kills(KILLS, max(seconds / 3, 4.0))
    console.print("faults")
    with running("--waiting", "16") as server:
        unkind = faults(server)
    note = NOTE.format(clients=clients, seconds=seconds, soak=soak, soaking=SOAKING, kills=KILLS)
    return {
        "machine": machine(), "note": f"{note} {summary(steady, killed, unkind)}", "rows": rows, "steadiness": steady,
        "kills": killed, "faults": unkind,
    }  # fmt: skip


def summary(steady: dict[str, Any], killed: dict[str, Any], unkind: list[dict[str, Any]]) -> str:
    """What is not in the rows, in words."""
    bad = [row["fault"] for row in unkind if row["server_errors"]]
    return (
        f"Memory after {steady['requests']} requests: {steady['after_bytes'] / 1e6:.0f} MB, "
        f"{steady['growth_bytes'] / 1e6:+.1f} MB. {killed['killed']} workers killed, {killed['lost']} of "
        f"{killed['requests']} requests lost, {killed['workers_after']} workers alive after it. "
        f"{sum(row['requests'] for row in unkind)} unkind requests of {len(unkind)} kinds, "
        f"{'none of which the server failed at' if not bad else 'failing at ' + ', '.join(bad)}."
    )
