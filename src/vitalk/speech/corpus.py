"""Speech corpora: recordings with their texts, from folders and Hugging Face data sets."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitalk.errors import UserError

from .audio import Audio

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
METADATA = ("metadata.jsonl", "metadata.csv")
FIELDS = {  # of a line of metadata.jsonl, beside id and text
    "speaker": str | int, "file": str, "phonemes": str, "synthesis_seconds": float | int,
    "first_audio_seconds": float | int,
}  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """One recording. id: unique in its corpus; text: what is said; speaker: a name; load: reads the sound.

    phonemes: as the corpus gives them, None where it gives none. path: of the sound file, None where there is none.
    """

    id: str
    text: str
    speaker: str
    load: Callable[[], Audio]
    phonemes: str | None = None
    path: Path | None = None


def open_corpus(path: str | Path | list[str], speakers: list[str] | None = None, lang: str | None = None) -> list[Clip]:
    """The clips of a corpus in the order of its list.

    path: a folder with metadata.csv (``id|text`` or, as in LJSpeech, ``id|text|normalised text``, of which the last
    is taken) or metadata.jsonl (id, text, and where known speaker, phonemes, file), the sound files beside it or in
    wavs/; ``hf:NAME`` or ``hf:NAME:CONFIGURATION`` for a Hugging Face data set with an audio and a text column; or a
    list of these, whose ids are then prefixed. speakers: only theirs; where a corpus names none, its folder does.
    Raises UserError for lists that are missing or damaged, and names the first clips without sound or text.
    """
    if isinstance(path, list):
        clips = [_prefixed(clip, str(one)) for one in path for clip in open_corpus(one, None, lang)]
    elif str(path).startswith("hf:"):
        clips = _hugging_face(str(path)[3:])
    else:
        clips = _folder(Path(path))
    if speakers is not None:
        known = sorted({clip.speaker for clip in clips})
        if missing := sorted(set(speakers) - set(known)):
            raise UserError(f"{path} has no speaker {missing[0]}; it has {', '.join(known[:20])}")
        clips = [clip for clip in clips if clip.speaker in speakers]
    if not clips:
        raise UserError(f"{path} holds no recordings; it needs metadata.csv or metadata.jsonl and sound files")
    return clips


def split(
    clips: list[Clip], held_out: float = 0.05, by: Literal["clip", "speaker"] = "clip"
) -> tuple[list[Clip], list[Clip]]:
    """(train, test): about the share ``held_out`` of the clips, or of the speakers, goes to the test part.

    The choice hangs on the names alone, so that it is the same on every machine and stays when a corpus grows.
    "speaker" makes parts that share no speaker. Both parts hold one at least.
    Raises UserError where there are fewer than two clips or speakers.
    """
    name = (lambda clip: clip.id) if by == "clip" else (lambda clip: clip.speaker)
    names = sorted({name(clip) for clip in clips}, key=_rank)
    if len(names) < 2:
        raise UserError(f"the corpus has {len(names)} {by}s; a held-out part needs at least two")
    test = set(names[: min(max(round(held_out * len(names)), 1), len(names) - 1)])
    return [c for c in clips if name(c) not in test], [c for c in clips if name(c) in test]


def _rank(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _prefixed(clip: Clip, corpus: str) -> Clip:
    return Clip(f"{Path(corpus).name}/{clip.id}", clip.text, clip.speaker, clip.load, clip.phonemes, clip.path)


def _folder(folder: Path) -> list[Clip]:
    if not folder.is_dir():
        raise UserError(f"there is no corpus at {folder}; name a folder with metadata.csv or hf:DATASET")
    found = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder} has no list of texts; put metadata.csv (id|text) or metadata.jsonl there")
    rows = read_metadata(found)
    files = {p.stem: p for p in (*folder.iterdir(), *(folder / "wavs").glob("*")) if p.suffix.lower() in SUFFIXES}
    clips, silent, wordless = [], [], []
    for row in rows:
        path = folder / row["file"] if row.get("file") else files.get(Path(row["id"]).stem)
        if path is None or not path.is_file():
            silent.append(row["id"])
        elif not row["text"].strip():
            wordless.append(row["id"])
        else:
            speaker = row.get("speaker") or folder.name
            load = lambda path=path: Audio.load(path)  # noqa: E731
            clips.append(Clip(row["id"], row["text"].strip(), speaker, load, row.get("phonemes"), path))
    for broken, what in ((silent, "no sound file"), (wordless, "no text")):
        if broken:
            count = f"{len(broken)} of {len(rows)}"
            raise UserError(f"{count} entries of {found} have {what}, first {broken[0]}; complete or remove them")
    return clips


def read_metadata(path: Path) -> list[dict[str, Any]]:
    """Rows of a list of texts, each {"id", "text"} and, from JSON lines, the other ``FIELDS``, None where not given.

    path: a metadata.jsonl, or a metadata.csv with id|text or LJSpeech's id|text|normalised text, whose last column
    counts. Raises UserError for files that are missing, empty or not UTF-8, for lines that hold no id and text, and
    for an id twice.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8 text; save it as UTF-8") from None
    parse = _json_line if path.suffix.lower() in (".jsonl", ".json") else _csv_line
    rows, seen = [], set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = parse(line)
        if row is None:
            wanted = '{"id": …, "text": …}' if parse is _json_line else "id|text"
            raise UserError(f"line {number} of {path} is not {wanted}: {line[:60]}")
        if row["id"] in seen:
            raise UserError(f"line {number} of {path} has the id {row['id']} for the second time; remove one of them")
        seen.add(row["id"])
        rows.append(row)
    if not rows:
        raise UserError(f"{path} lists no texts")
    return rows


def _json_line(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("id"), str | int) or not isinstance(row.get("text"), str):
        return None
    more = {key: row.get(key) for key in FIELDS}
    if not all(value is None or isinstance(value, FIELDS[key]) for key, value in more.items()):
        return None
    if any(more[key] is not None and more[key] < 0 for key in ("synthesis_seconds", "first_audio_seconds")):
        return None
    speaker = None if more["speaker"] is None else str(more["speaker"])
    return {"id": str(row["id"]), "text": row["text"], **more, "speaker": speaker}


def _csv_line(line: str) -> dict[str, Any] | None:
    cells = [cell.strip() for cell in line.split("|")]
    return {"id": cells[0], "text": cells[-1]} if len(cells) > 1 and cells[0] else None


def _hugging_face(name: str) -> list[Clip]:
    import datasets

    name, _, configuration = name.partition(":")
    try:
        parts = datasets.load_dataset(name, configuration or None)
    except Exception as error:
        raise UserError(
            f"the data set {name} cannot be loaded ({type(error).__name__}); check name and network"
        ) from None
    table = datasets.concatenate_datasets(list(parts.values()))
    audio = next((c for c, f in table.features.items() if isinstance(f, datasets.Audio)), None)
    text = next((c for c in ("normalized_text", "text", "sentence", "transcription") if c in table.features), None)
    if audio is None or text is None:
        raise UserError(f"the data set {name} needs an audio and a text column, it has {list(table.features)}")
    table = table.cast_column(audio, datasets.Audio(decode=False))
    speaker = next((c for c in ("speaker", "speaker_id", "client_id") if c in table.features), None)
    speakers = table[speaker] if speaker else [name] * len(table)

    def load(index: int) -> Audio:
        import io

        stored = table[index][audio]
        return Audio.load(io.BytesIO(stored["bytes"]) if stored["bytes"] else stored["path"])

    return [
        Clip(f"{i:06d}", words, str(who), lambda i=i: load(i))
        for i, (words, who) in enumerate(zip(table[text], speakers, strict=True))
        if words and words.strip()
    ]
