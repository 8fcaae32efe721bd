"""Sentences: what is synthesised in one go."""

import re
from collections.abc import Iterator

# The longest cut whose end lies in the text: after a clause, else after a word.
_CLAUSE = re.compile(r".*[;:,.!?…—)\"](?=\s)", re.S)
_WORD = re.compile(r".*\s", re.S)


def split_sentences(text: str, lang: str = "en-us", longest: int = 400) -> list[str]:
    """Sentences of the text, none above ``longest`` characters, none empty, without the space around them.

    Boundaries come from sentencex, which knows abbreviations of many languages, and from line breaks. A longer sentence
    is cut after a clause, else after a word, else anywhere; nothing but white space, and halves of surrogate pairs, is
    lost. Time grows linearly.
    """
    import sentencex

    if longest < 1:
        raise ValueError("longest must be 1 or more")
    code = lang.replace("_", "-").partition("-")[0]
    code = {"cmn": "zh", "yue": "zh", "hak": "zh", "nb": "no"}.get(code, code)
    found: list[str] = []
    for line in _lines(text.encode("utf-8", "ignore").decode()):
        for sentence in sentencex.segment(code, line):
            found.extend(_pieces(sentence.strip(), longest))
    return found


def _lines(text: str) -> Iterator[str]:
    """Lines that mean something: those that an editor wrapped are put together again."""
    held: list[str] = []
    for line in map(str.strip, text.split("\n")):
        # A wrapped line is long or goes on in small letters, and has not come to an end.
        wrapped = held and line and held[-1][-1] not in ".!?…:;" and (len(held[-1]) >= 60 or line[0].islower())
        if held and not wrapped:
            yield " ".join(held)
            held = []
        if line:
            held.append(line)
    if held:
        yield " ".join(held)


def _pieces(sentence: str, longest: int) -> list[str]:
    pieces, start = [], 0
    while len(sentence) - start > longest:
        window = sentence[start : start + longest + 1]
        cut = _CLAUSE.match(window) or _WORD.match(window)
        # A cut in the first quarter would leave a stump to be spoken alone.
        end = cut.end() if cut and cut.end() > longest // 4 else longest
        if end == longest and (word := _WORD.match(window)):
            end = word.end()
        end = min(end, longest)
        pieces.append(sentence[start : start + end].strip())
        start += end
    pieces.append(sentence[start:].strip())
    return [piece for piece in pieces if piece]
