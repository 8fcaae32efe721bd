"""Voices judged directly: they say a list of sentences, and the judges hear what came out."""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from vitalk.errors import UserError
from vitalk.files import staging
from vitalk.speech.audio import Audio
from vitalk.speech.peers import open_voice
from vitalk.speech.synthesizer import Streamer
from vitalk.speech.voice import join

from .evaluate import JUDGES, bar, check_sounds, evaluate, ready
from .recogniser import Normaliser, Recogniser, base_code
from .recordings import Recording, collect, spread
from .report import Report, file_name
from .texts import read_texts

LEVEL = -23.0  # dB RMS, so that DNSMOS, which hangs on the level, is fair to all


def evaluate_voices(
    names: Sequence[str | Path],
    text: str | Path | None = None,
    *,
    reference: str | Path | None = None,
    lang: str = "en",
    limit: int | None = None,
    output: str | Path | None = None,
    plots: int = 0,
    speaker: Audio | str | Path | None = None,
    normaliser: Normaliser = "seed",
    judges: Sequence[str] = tuple(JUDGES),
    recogniser: Recogniser | None = None,
    opened: Callable[[str | Path], Streamer] | None = None,
) -> tuple[Report, list[str]]:
    """Let voices say the same sentences and judge what they said; the report, and what was written.

    names: voices, voice files and peers, see ``open_voice``. text, lang: the sentences, see ``read_texts``, and their
    language. reference: a folder of recordings with their ids as names. limit: of sentences, spread evenly. output: a
    folder for the report, ``plots`` pictures and the recordings, with a metadata.jsonl of what the clock said; it
    appears when all are written. speaker, normaliser, judges, recogniser: see ``evaluate``. opened: makes a voice of a
    name; ``open_voice`` where None.
    The first sentence is said once more before the clock counts. Recordings are levelled to -23 dB RMS, since DNSMOS
    hangs on the level, and are judged as they are written, in 16 bits.
    Raises UserError before anything is said for unknown voices, empty lists, an output that cannot be written to and
    whatever ``evaluate`` refuses; and for a sentence that a voice cannot say.
    """
    texts = spread(list(enumerate(read_texts(text, lang), 1)), limit)
    make = opened or open_voice
    voices = {label: make(name) for label, name in labels(names).items()}
    with _folder(output) as folder:
        folder = Path(folder)
        planned, notes = collect(
            [
                Recording(folder / f"{label}-{number:03d}.wav", words, speaker=label, name=f"{label}/{key}")
                for label in voices
                for number, (key, words) in texts
            ],
            reference=reference,
        )
        check_sounds([], speaker)
        judging = {"speaker": speaker, "lang": lang, "normaliser": normaliser, "judges": judges}
        _, recogniser = ready(planned, recogniser=recogniser, **judging)
        said = [
            recording
            for label, voice in voices.items()
            for recording in _said(voice, [item for item in planned if item.speaker == label], lang)
        ]
        report = evaluate(said, recogniser=recogniser, **judging)
        source = "the bundled sentences" if text is None else Path(text).name
        report.settings = {"voices": list(voices), "texts": source, "level": f"{LEVEL:g} dB RMS", **report.settings}
        report.notes = [*notes, *report.notes]
        report.rivals = len(voices) > 1
        if output is None:
            return report, []
        _list(folder / "metadata.jsonl", said)
        return report, [*report.write(folder, plots), "metadata.jsonl", f"{len(said)} recordings"]


def say(voice: Streamer, text: str, lang: str | None = None) -> tuple[Audio, float, float]:
    """The sound, seconds until all of it was there, and until the first sentence was."""
    start, first, parts = time.perf_counter(), 0.0, []
    for part in voice.stream(text, lang=lang):
        first = first or time.perf_counter() - start
        parts.append(part)
    return join(parts), time.perf_counter() - start, first


def labels(names: Sequence[str | Path]) -> dict[str, str | Path]:
    """Short names of voices, fit for files: that of the voice file, or all that was given where two share one.

    Raises UserError where there is none, or two cannot be told apart.
    """
    if not names:
        raise UserError("there is no voice to judge; name one with --voice")
    short, whole = ([file_name(part) for part in parts] for parts in ([Path(n).stem for n in names], map(str, names)))
    found = [stem if short.count(stem) == 1 else name for stem, name in zip(short, whole, strict=True)]
    if twice := [label for i, label in enumerate(found) if label in found[:i]]:
        raise UserError(f"the voice {twice[0]} is given twice; name it once, or rename one of two files")
    return dict(zip(found, names, strict=True))


def _folder(output: str | Path | None) -> AbstractContextManager:
    return tempfile.TemporaryDirectory(prefix="vitalk-") if output is None else staging(Path(output))


def _said(voice: Streamer, planned: list[Recording], lang: str) -> list[Recording]:
    """The recordings, said and written, with what the clock said."""
    spoken = None if base_code(lang) == base_code(voice.lang) else lang  # "en" shall not turn a British voice American
    say(voice, planned[0].text, spoken)
    found = []
    for item in bar(planned, f"{planned[0].speaker} speaks"):
        audio, seconds, first = say(voice, item.text, spoken)
        audio.levelled(LEVEL).save(item.audio)
        found.append(replace(item, synthesis_seconds=seconds, first_audio_seconds=first))
    return found


def _list(path: Path, said: list[Recording]) -> None:
    """metadata.jsonl of the recordings, so that their folder can be judged again."""
    rows = (
        {"id": item.name, "speaker": item.speaker, "text": item.text, "file": Path(item.audio).name,
         "synthesis_seconds": item.synthesis_seconds, "first_audio_seconds": item.first_audio_seconds}
        for item in said
    )  # fmt: skip
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
