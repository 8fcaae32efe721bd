"""Unkind clients: what a server answers to whatever should not be sent to it. Everything is bounded, and local."""

import io
import json
import math
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
from PIL import Image

from .serving import Server, settled, shown

JSON = {"content-type": "application/json"}
BODIES, LORISES = 1000, 100
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4nGM8IWfDwMDAxMDAwMDAAAAOTgEmR2hJIgAAAABJRU5ErkJggg=="
MANNER = {
    "voice": "vitalk",
    "response_format": "wav",
    "speed": 1.0,
    "pitch": 1.0,
    "energy": 1.0,
    "stream_format": "sse",
}
VALID: dict[str, dict[str, Any]] = {
    "/v1/audio/speech": {"model": "vitalk", "input": "Hello.", **MANNER},
    "/v1/vision/classify": {"image": PIXEL, "top": 3},
    "/v1/describe": {"image": PIXEL, **MANNER},
}
PATHS = tuple(VALID)


def faults(server: Server) -> list[dict[str, Any]]:
    """A row a kind of fault: how many requests, the answers by code, server errors, growth of memory in bytes.

    server_errors: answers of 500 and above, requests without an answer, and whether it no longer speaks afterwards.
    """
    kinds: dict[str, Callable[[Server], Counter[int]]] = {
        "malformed JSON": malformed, "wrong content types": mistyped, "text of 10 MB": long_text,
        "picture of 100 megapixels": bomb, "truncated uploads": truncated, "slow headers": slow,
        f"{BODIES} random bodies": fuzzed, f"{BODIES} others": lambda server: fuzzed(server, seed=1),
    }  # fmt: skip
    rows = []
    for name, run in kinds.items():
        before = settled(server)
        codes = run(server)
        failed = sum(count for code, count in codes.items() if code == 0 or code >= 500)
        said = httpx.post(f"{server.address}/v1/audio/speech", json=speech("Still here."), timeout=30)
        rows.append(
            {"fault": name, "requests": sum(codes.values()), "codes": shown(codes),
             "server_errors": failed + (said.status_code != 200), "growth_bytes": settled(server) - before}
        )  # fmt: skip
    return rows


def speech(text: str) -> dict[str, Any]:
    """A good request for a text."""
    return {"model": "vitalk", "voice": "vitalk", "input": text}


def _codes(server: Server, sent: list[tuple[str, dict[str, Any]]]) -> Counter[int]:
    codes: Counter[int] = Counter()
    with httpx.Client(base_url=server.address, timeout=30) as client:
        for path, what in sent:
            try:
                codes[client.post(path, **what).status_code] += 1
            except httpx.HTTPError:
                codes[0] += 1
    return codes


def malformed(server: Server) -> Counter[int]:
    """Bodies that are no JSON."""
    bodies = [b"", b"{", b"[", b'{"model": ', b"\xff\xfe", b"nul", b"[" * 20_000, b'{"a":' * 5_000, b"\x00" * 100]
    return _codes(server, [(path, {"content": body, "headers": JSON}) for path in PATHS for body in bodies])


def mistyped(server: Server) -> Counter[int]:
    """Good bodies under wrong names."""
    kinds = [
        "text/plain",
        "application/xml",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "image/png",
        "é",
    ]
    body = json.dumps(speech("Hello.")).encode()
    return _codes(
        server, [(path, {"content": body, "headers": [(b"content-type", k.encode())]}) for path in PATHS for k in kinds]
    )


def long_text(server: Server) -> Counter[int]:
    """Text of 10 MB: declared, and in chunks of unknown number."""
    body = json.dumps(speech("word " * 2_000_000)).encode()
    chunks = [body[i : i + 65_536] for i in range(0, len(body), 65_536)]
    return _codes(
        server, [(PATHS[0], {"content": body, "headers": JSON}), (PATHS[0], {"content": iter(chunks), "headers": JSON})]
    )


def bomb(server: Server) -> Counter[int]:
    """Few bytes, many pixels."""
    files = []
    for kind in ("PNG", "GIF", "JPEG"):
        file = io.BytesIO()
        Image.new("L", (10_000, 10_000)).save(file, kind)
        files.append(file.getvalue())
    return _codes(server, [(path, {"files": {"image": file}}) for path in PATHS[1:] for file in files])


def truncated(server: Server) -> Counter[int]:
    """Uploads in whose middle the client hangs up: 499, as there is nobody to answer."""
    codes: Counter[int] = Counter()
    for i in range(20):
        head = (
            f"POST {PATHS[i % 3]} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
        )
        with _connected(server) as made:
            made.sendall(head.encode() + b'{"image": "' + b"A" * 100 * i)
        codes[499] += 1
    return codes


def slow(server: Server) -> Counter[int]:
    """Connections that send a header and then nothing, while others are served; all are hung up on in the end.

    A connection that is hung up on counts as 408, one that is kept for a minute as no answer.
    """
    made = [_connected(server) for _ in range(LORISES)]
    for one in made:
        one.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nX-Slow: ")
    codes = _codes(server, [(PATHS[0], {"json": speech("Hello.")})] * 5)
    end = time.monotonic() + 60
    for one in made:
        one.settimeout(max(end - time.monotonic(), 0.01))
        try:
            codes[408 if one.recv(100)[:12] in (b"", b"HTTP/1.1 408") else 0] += 1
        except ConnectionError:
            codes[408] += 1
        except TimeoutError:
            codes[0] += 1
        finally:
            one.close()
    return codes


def fuzzed(server: Server, count: int = BODIES, seed: int = 0) -> Counter[int]:
    """Random bodies: noise, and good requests with anything in the place of some fields.

    Long texts among them make the engine keep as much memory as they took, once; a leak would show the second time.
    """
    rng = random.Random(seed)
    paths = rng.choices(PATHS, k=count)
    return _codes(server, [(path, {"content": body(rng, path), "headers": JSON}) for path in paths])


def body(rng: random.Random, path: str) -> bytes:
    """One of them."""
    if rng.random() < 0.15:
        return rng.randbytes(rng.randrange(200))
    valid = VALID[path]
    fields = {name: valid[name] for name in valid if rng.random() < 0.95}
    for _ in range(rng.randrange(3)):
        name = rng.choice([*valid, "lang"] if rng.random() < 0.9 else ["instructions", "other"])
        fields[name] = anything(rng)
    text = json.dumps(fields)
    if rng.random() < 0.1:
        cut = rng.randrange(len(text))
        text = text[:cut] + chr(rng.randrange(1, 0x2FF)) + text[cut + 1 :]
    return text.encode("utf-8", "surrogatepass")


def anything(rng: random.Random, depth: int = 0) -> Any:
    """A random JSON value."""
    kind = rng.randrange(9 if depth < 3 else 7)
    if kind == 7:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 8:
        return {str(anything(rng, 3)): anything(rng, depth + 1) for _ in range(rng.randrange(4))}
    text = "".join(
        chr(rng.choice([rng.randrange(0x20, 0x7F), rng.randrange(0x10FFFF)])) for _ in range(rng.randrange(20))
    )
    odd = ["", "../../etc/passwd", "\x00", "data:,", "<speak>", "٣", "🙂" * 50]
    return [
        None, rng.random() < 0.5, rng.randrange(-(10**9), 10**9), rng.choice([1e308, -0.0, 1.5, math.nan, math.inf]),
        text, "a" * rng.randrange(5000), rng.choice(odd),
    ][kind]  # fmt: skip


def _connected(server: Server) -> socket.socket:
    parts = urlsplit(server.address)
    return socket.create_connection((parts.hostname, parts.port), timeout=30)
