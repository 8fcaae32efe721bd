"""What voices are asked to say: the bundled everyday sentences, or a list of one's own."""

from importlib import resources
from pathlib import Path

from vitalk.errors import UserError
from vitalk.speech.corpus import read_metadata

from .recogniser import base_code

SENTENCES = Path(str(resources.files("vitalk"))) / "assets" / "sentences.en.txt"  # ours, in no corpus


def read_texts(path: str | Path | None = None, lang: str = "en") -> list[tuple[str, str]]:
    """(id, text) of each line of a list; without one, of the 100 bundled English sentences.

    path: a .txt with a sentence a line, whose ids are their numbers, or a metadata.csv or metadata.jsonl.
    lang: which the list is in. Raises UserError for lists that are missing, empty or damaged, and for a language that
    no bundled list is in.
    """
    if path is None:
        if base_code(lang) != "en":
            raise UserError(f"the bundled sentences are English; give a list of sentences in {lang} with --text")
        path = SENTENCES
    path = Path(path)
    if path.suffix.lower() != ".txt":
        return [(row["id"], row["text"]) for row in read_metadata(path)]
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8 text; save it as UTF-8") from None
    if not (texts := [line for line in lines if line]):
        raise UserError(f"{path} lists no texts; write one sentence a line")
    return [(f"{number:03d}", line) for number, line in enumerate(texts, 1)]
