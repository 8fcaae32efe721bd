"""Voices of others under our protocol, to compare with: Kokoro-82M and espeak-ng."""

from pathlib import Path

from vitalk.errors import UserError, nearest
from vitalk.speech.synthesizer import Streamer
from vitalk.speech.voice import Voice, find_voice, voices

PEERS = {"kokoro": "Kokoro-82M int8", "espeak": "espeak-ng"}


def open_voice(name: str | Path, threads: int | None = None) -> Streamer:
    """The peer of this name, or else the voice of this name or file, ready to speak.

    threads: of onnxruntime, None for one a core; espeak uses one. Raises UserError for names that are neither, for
    files that are no voice, and for peers whose packages are not installed.
    """
    if name == "kokoro":
        from .kokoro import Kokoro

        return Kokoro(threads)
    if name == "espeak":
        from .espeak import Espeak

        return Espeak()
    return Voice.load(_file(name), threads)


def files_of(name: str | Path) -> list[Path]:
    """The files that hold a voice: of espeak what English needs, of the others without the text front end.

    Raises UserError as ``open_voice`` does, without loading a model.
    """
    if name == "kokoro":
        from .kokoro import files

        return files()
    if name == "espeak":
        from .espeak import files

        return files()
    return [_file(name)]


def _file(name: str | Path) -> Path:
    known = [*voices(), *PEERS]
    if str(name) not in known and not Path(name).is_file():
        close = nearest(str(name), known)
        raise UserError(f"there is no voice {name}; there are {', '.join(known)} and voice files.{close}")
    return find_voice(name)
