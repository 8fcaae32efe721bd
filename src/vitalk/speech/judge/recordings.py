"""Which recordings are judged, and against what: folders with a metadata file, or a list."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from vitalk.errors import UserError
from vitalk.speech.audio import Audio
from vitalk.speech.corpus import METADATA, SUFFIXES, read_metadata

T = TypeVar("T")
NAMED = 5  # names that a message lists


@dataclass(frozen=True)
class Recording:
    """Sound to judge, a file or in memory, and the text that it should say.

    reference: another recording of the same text. speaker: who speaks, a name for the report. name: its name in the
    report. synthesis_seconds, first_audio_seconds: how long making it took, and until its first sound, where the
    caller measured that. alignment: [text, frames] of the model, to be drawn.
    """

    audio: Audio | str | Path
    text: str
    reference: Audio | str | Path | None = None
    speaker: str | None = None
    name: str = ""
    synthesis_seconds: float | None = None
    first_audio_seconds: float | None = None
    alignment: np.ndarray | None = None


def sound(source: Audio | str | Path, name: str) -> Audio:
    """The sound itself. Raises UserError that names it where it is damaged, empty or missing."""
    if not isinstance(source, Audio):
        return Audio.load(source)
    if not len(source.samples) or not np.isfinite(source.samples).all():
        raise UserError(f"the sound of {name} is empty or holds samples that are no numbers")
    return source


def collect(
    source: str | Path | Sequence[Recording | tuple], text: str | Path | None = None,
    reference: str | Path | None = None, limit: int | None = None,
) -> tuple[list[Recording], list[str]]:  # fmt: skip
    """(recordings, notes on what is left out) of a folder or a list; nothing is decoded yet.

    source: a folder with recordings, or with wavs/, beside its list; or ``Recording`` or tuples in its order.
    The list is metadata.jsonl, a line each {id, text} and, where known, speaker, file, synthesis_seconds and
    first_audio_seconds; or metadata.csv, id|text or LJSpeech's id|text|normalised text, whose last column counts.
    text: another such list.
    reference: a folder with recordings of the same names. limit: at most so many, spread evenly.
    Raises UserError for folders without metadata or recordings, lines that hold neither, and empty texts.
    """
    notes: list[str] = []
    if isinstance(source, str | Path):
        found = _from_folder(Path(source), text, notes)
    else:
        listed = [item if isinstance(item, Recording) else Recording(*item) for item in source]
        found = [Recording(**{**vars(item), "name": _name(item, i)}) for i, item in enumerate(listed)]
    if empty := [item.name for item in found if not item.text.strip()]:
        raise UserError(f"there is no text for {_names(empty)}; give what is spoken or leave the recording out")
    if not found:
        raise UserError("there is no recording to evaluate")
    found = spread(found, limit)
    if reference is not None:
        files = recordings_in(Path(reference))
        found = [Recording(**{**vars(item), "reference": files.get(_stem(item.name))}) for item in found]
        if lacking := [item.name for item in found if item.reference is None]:
            notes.append(f"{len(lacking)} of {len(found)} recordings have no reference: {_names(lacking)}")
        if len(lacking) == len(found):
            raise UserError(f"no recording in {reference} has the name of one to evaluate, such as {found[0].name}")
    return found, notes


def spread(items: list[T], limit: int | None) -> list[T]:
    """At most ``limit`` of the items, the first and others at even distances."""
    if limit is None or limit >= len(items):
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, max(limit, 1)).astype(int)]


def recordings_in(folder: Path) -> dict[str, Path]:
    """Sound files in ``folder`` and in its wavs/ by name without suffix. Raises UserError where there are none."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    found = _sounds(folder)
    if not found:
        raise UserError(f"there is no sound file in {folder} or its wavs/ ({', '.join(s[1:] for s in SUFFIXES)})")
    return found


def _sounds(folder: Path) -> dict[str, Path]:
    files = sorted(p for where in (folder / "wavs", folder) if where.is_dir() for p in where.iterdir())
    return {path.stem: path for path in files if path.suffix.lower() in SUFFIXES}


def _from_folder(folder: Path, text: str | Path | None, notes: list[str]) -> list[Recording]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    files = _sounds(folder)
    path = Path(text) if text else next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} holds no {' or '.join(METADATA)}; name the file of its texts with --text")
    rows = read_metadata(path)
    found = []
    for row in rows:
        name, file = row.pop("id"), row.pop("file", None)
        row.pop("phonemes", None)
        place = folder / file if file else files.get(_stem(name))
        if place is not None and place.is_file():
            found.append(Recording(place, **row, name=name))
    if not found:
        raise UserError(f"no recording in {folder} has a name that {path} lists")
    if len(found) < len(rows):
        notes.append(f"{len(rows) - len(found)} of the {len(rows)} texts in {path.name} have no recording")
    if spare := sorted(set(files) - {Path(item.audio).stem for item in found}):
        notes.append(f"{len(spare)} recordings have no text: {_names(spare)}")
    return found


def _stem(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def _name(item: Recording, index: int) -> str:
    return item.name or (f"utterance {index}" if isinstance(item.audio, Audio) else Path(item.audio).stem)


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (" …" if len(names) > NAMED else "")
