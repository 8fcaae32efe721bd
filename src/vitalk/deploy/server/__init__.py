"""The server: an OpenAI-compatible speech and vision API, and a page to try it. Needs ``pip install "vitalk[serve]"``.

    vitalk serve                      # http://127.0.0.1:8000
    curl localhost:8000/v1/audio/speech -H 'Content-Type: application/json' \\
        -d '{"model": "vitalk", "input": "Hello.", "voice": "vitalk"}' -o hello.mp3

How a request runs: the bounded ``Gate`` lets it in (429 when full); the text front end cuts it into sentences; each
sentence goes to a worker process of its voice and comes back as sound, which is encoded and sent while the next one is
being said. A worker that dies is replaced, and its sentence said again. Pictures are read in batches of whatever
came within a few milliseconds.
"""

from .app import create_app
from .settings import Settings

__all__ = ["Settings", "create_app"]
