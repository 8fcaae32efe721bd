"""Pronunciations that users give."""

import json
from collections.abc import Mapping
from pathlib import Path

from vitalk.errors import UserError

from .symbols import unknown


def read_lexicon(source: Mapping[str, str] | str | Path | None) -> dict[str, str]:
    """Word in small letters -> phonemes, from a mapping, a JSON object, or lines of a word, white space and phonemes.

    Lines that begin with "# " are comments. Raises UserError for files that cannot be read, words with spaces and
    phonemes that are no IPA.
    """
    if source is None:
        return {}
    if isinstance(source, Mapping):
        return _checked(source.items(), "the lexicon")
    path = Path(source)
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UserError(f"the lexicon {path} cannot be read: {reason}") from None
    if path.suffix.lower() == ".json":
        try:
            entries = json.loads(text)
        except ValueError as error:
            raise UserError(f"the lexicon {path} is no JSON: {error}") from None
        if not isinstance(entries, dict):
            raise UserError(f"the lexicon {path} must hold one JSON object of words and phonemes")
        return _checked(entries.items(), f"the lexicon {path}")
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("# "):
            continue
        row = line.strip().split(None, 1)
        if len(row) < 2:
            raise UserError(
                f"line {number} of the lexicon {path} has no phonemes; write a word, a tab and its phonemes"
            )
        rows.append(tuple(row))
    return _checked(rows, f"the lexicon {path}")


def _checked(entries: object, name: str) -> dict[str, str]:
    found = {}
    for word, phonemes in entries:  # type: ignore[attr-defined]
        if not isinstance(word, str) or not isinstance(phonemes, str) or not word.strip() or not phonemes.strip():
            raise UserError(f"{name} must map words to phonemes, but maps {word!r} to {phonemes!r}")
        if len(word.split()) > 1:
            raise UserError(f"{name} holds {word!r}; give its words one by one")
        if strange := unknown(phonemes):
            raise UserError(f"{name} gives {word!r} the phonemes {phonemes!r}, where {strange!r} is no IPA")
        found[word.strip().casefold()] = " ".join(phonemes.split())
    return found
