"""Every judge on every recording, in one report."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vitalk.errors import UserError, nearest
from vitalk.speech.audio import Audio

from .need import need
from .recogniser import NORMALISERS, Errors, Normaliser, Recogniser, count_errors
from .recordings import NAMED, Recording, T, collect, recordings_in, sound
from .report import Report
from .speaker import SpeakerEncoder, similarity

JUDGES = {
    "words": ("faster_whisper", "jiwer"),
    "speaker": ("resemblyzer",),
    "quality": ("speechmos.dnsmos",),
    "prosody": ("torch", "librosa", "pyworld"),
}
VOICE_FILES = 20  # of a folder are enough to know a voice
Judge = Callable[[Recording, Audio, Audio | None], dict[str, Any]]  # (recording, its sound, its reference) -> columns


def evaluate(
    recordings: str | Path | Sequence[Recording | tuple],
    *,
    text: str | Path | None = None,
    reference: str | Path | None = None,
    speaker: Audio | str | Path | None = None,
    lang: str = "en",
    normaliser: Normaliser = "seed",
    limit: int | None = None,
    judges: Sequence[str] = tuple(JUDGES),
    recogniser: Recogniser | None = None,
    encoder: SpeakerEncoder | None = None,
) -> Report:
    """Judge recordings against their texts, and against references where there are any.

    recordings, text, reference, limit: a folder or a list of (audio, text[, reference, speaker]), see
    ``recordings.collect``. speaker: the voice that all should have, a recording or a folder of them (the first 20
    count); without it similarity is to each one's reference. lang, normaliser: see ``recogniser``.
    judges: of "words" (WER, CER), "speaker" (similarity), "quality" (DNSMOS), "prosody" (pitch, voicing,
    mel-cepstral distortion, energy, tempo against the reference). recogniser, encoder: loaded ones, to use again.
    Every file is decoded before the first is judged, so that a damaged one ends the run at its start.
    Raises UserError for damaged or missing sound, empty texts, unknown judges and languages, and packages that are
    not installed.
    What a judge cannot say of a recording (the voice of silence) is left out of the means and noted.
    """
    items, notes = collect(recordings, text, reference, limit)
    check_sounds(items, speaker)
    wanted, recogniser = ready(
        items, speaker=speaker, lang=lang, normaliser=normaliser, judges=judges, recogniser=recogniser
    )
    panel: list[Judge] = []
    settings: dict[str, Any] = {"recordings": len(items), "lang": lang, "judges": wanted}
    if "words" in wanted:
        settings |= {"recogniser": f"Whisper {recogniser.name}", "normaliser": normaliser}
        panel.append(_words(recogniser, lang, normaliser))
    if "speaker" in wanted:
        encoder = encoder or SpeakerEncoder()
        settings["similarity to"] = "the reference of each" if speaker is None else _voice_name(speaker)
        panel.append(_speaker(encoder, _voice(encoder, speaker)))
    if "quality" in wanted:
        panel.append(_quality)
    if "prosody" in wanted:
        panel.append(_prosody)
    rows = [_row(item, panel, notes) for item in bar(items, "judging")]
    return Report(settings, rows, notes, items)


def ready(
    items: Sequence[Recording],
    *,
    speaker: Audio | str | Path | None = None,
    lang: str = "en",
    normaliser: Normaliser = "seed",
    judges: Sequence[str] = tuple(JUDGES),
    recogniser: Recogniser | None = None,
) -> tuple[list[str], Recogniser | None]:
    """Those of the judges that can say something of the recordings, whose sound may be missing yet; the recogniser.

    Raises UserError as ``evaluate`` does for all but the sound.
    """
    _known(judges, normaliser)
    compared = any(item.reference is not None for item in items)
    possible = {"words": True, "quality": True, "speaker": compared or speaker is not None, "prosody": compared}
    wanted = [name for name in judges if possible[name]]
    for module in (module for name in wanted for module in JUDGES[name]):
        need(module)
    if "words" in wanted:
        for item in items:
            _named(item.name, count_errors, item.text, "", lang, normaliser)
        recogniser = recogniser or Recogniser()
        recogniser.language(lang)
    return wanted, recogniser


def _known(judges: Sequence[str], normaliser: str) -> None:
    for name in judges:
        if name not in JUDGES:
            raise UserError(f"there is no judge {name}; choose of {', '.join(JUDGES)}.{nearest(name, list(JUDGES))}")
    if normaliser not in NORMALISERS:
        raise UserError(f"there is no normaliser {normaliser}; choose one of {', '.join(NORMALISERS)}")


def _row(item: Recording, panel: Iterable[Judge], notes: list[str]) -> dict[str, Any]:
    audio = sound(item.audio, item.name)
    reference = None if item.reference is None else sound(item.reference, f"the reference of {item.name}")
    row: dict[str, Any] = {"name": item.name, "speaker": item.speaker, "text": item.text, "seconds": audio.seconds}
    for judge in panel:
        try:
            row |= judge(item, audio, reference)
        except UserError as error:
            notes.append(f"{item.name}: {error}")
    if item.synthesis_seconds is not None:
        row["rtf"] = item.synthesis_seconds / audio.seconds
    if item.first_audio_seconds is not None:
        row["first_audio"] = item.first_audio_seconds
    return row


def _words(recogniser: Recogniser, lang: str, normaliser: Normaliser) -> Judge:
    def judge(item: Recording, audio: Audio, reference: Audio | None) -> dict[str, Any]:
        heard = recogniser.transcribe(audio, lang)
        errors: Errors = count_errors(item.text, heard, lang, normaliser)
        return {"heard": heard, "wer": errors.wer, "cer": errors.cer, **asdict(errors)}

    return judge


def _speaker(encoder: SpeakerEncoder, voice: np.ndarray | None) -> Judge:
    def judge(item: Recording, audio: Audio, reference: Audio | None) -> dict[str, Any]:
        if voice is None and reference is None:
            return {}
        return {"similarity": similarity(encoder.embed(audio), encoder.embed(reference) if voice is None else voice)}

    return judge


def _quality(item: Recording, audio: Audio, reference: Audio | None) -> dict[str, Any]:
    from .quality import dnsmos

    return dnsmos(audio)


def _prosody(item: Recording, audio: Audio, reference: Audio | None) -> dict[str, Any]:
    from .prosody import compare

    return {} if reference is None else asdict(compare(audio, reference))


def _voice_files(speaker: Audio | str | Path | None) -> list[Audio | str | Path]:
    if speaker is None or isinstance(speaker, Audio) or not Path(speaker).is_dir():
        return [] if speaker is None else [speaker]
    return list(recordings_in(Path(speaker)).values())[:VOICE_FILES]


def _voice_name(speaker: Audio | str | Path) -> str:
    return "a recording in memory" if isinstance(speaker, Audio) else Path(speaker).name


def _voice(encoder: SpeakerEncoder, speaker: Audio | str | Path | None) -> np.ndarray | None:
    if speaker is None:
        return None
    audios = [sound(source, "the speaker's recording") for source in _voice_files(speaker)]
    return _named(f"the speaker {_voice_name(speaker)}", encoder.embed_speaker, audios)


def check_sounds(items: Sequence[Recording], speaker: Audio | str | Path | None) -> None:
    """Decode every sound once. Raises UserError that names the damaged and missing ones."""
    sources = [(item.audio, item.name) for item in items]
    sources += [(item.reference, f"the reference of {item.name}") for item in items if item.reference is not None]
    sources += [(source, "the speaker's recording") for source in _voice_files(speaker)]
    problems = []
    for source, name in bar(sources, "reading"):
        try:
            sound(source, name)
        except UserError as error:
            problems.append(str(error))
    if problems:
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise UserError("; ".join(problems[:NAMED]) + more)


def _named(name: str, function: Callable, *args: Any) -> Any:
    try:
        return function(*args)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def bar(items: Sequence[T], title: str) -> Iterable[T]:
    """The items, with a progress bar on a terminal's stderr."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, title, console=console, transient=True, disable=not console.is_terminal)
