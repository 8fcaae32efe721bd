"""Words said twice and words left out, on 50 sentences that are hard on attention (arXiv 1905.09263, section 5).

The sentences are ours, the paper's are not free to copy: repeated words, digits, spelled letters, very short and very
long ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitalk.errors import UserError
from vitalk.speech.judge.need import need
from vitalk.speech.judge.recogniser import Recogniser, normalise
from vitalk.speech.judge.texts import read_texts
from vitalk.speech.synthesizer import Synthesizer

SENTENCES = Path(__file__).with_name("hard_sentences.txt")
NEAR = 3  # words around its place in which a word that was put in counts as repeated


@dataclass(frozen=True)
class Slips:
    """Words of a text that were repeated and that were skipped."""

    repeated: int
    skipped: int

    @property
    def any(self) -> bool:
        """Whether the sentence counts as one with an error."""
        return self.repeated + self.skipped > 0


@dataclass(frozen=True)
class Robustness:
    """A line of the paper's table: words repeated and skipped, sentences with either, and their share."""

    repeats: int
    skips: int
    sentences: int
    error_rate: float


def hard_sentences() -> list[str]:
    """The 50 sentences."""
    return [text for _, text in read_texts(SENTENCES)]


def count_slips(text: str, heard: str) -> Slips:
    """Words repeated and skipped, from what a recogniser heard of a text.

    Both are brought into one form: numbers as single digits, letters that stand alone joined, as recognisers write
    them either way; then words are aligned. Skipped: what was left out. Repeated: what was put in where the text
    has the same word at most three words away, and no more of them than the text has words: recognisers run away, and
    write one word a hundred times that nobody said. What was misheard is neither: it says more about sounds.
    Raises UserError where the text holds no word.
    """
    words, said = _words(text), _words(heard)
    if not words:
        raise UserError(f"the text {text!r} holds no words to compare with; give what is spoken")
    repeated = skipped = 0
    for chunk in need("jiwer").process_words(" ".join(words), " ".join(said)).alignments[0]:
        if chunk.type == "delete":
            skipped += chunk.ref_end_idx - chunk.ref_start_idx
        elif chunk.type == "insert":
            more = said[chunk.hyp_start_idx : chunk.hyp_end_idx]
            reach = max(NEAR, len(more))  # a phrase may stand twice
            around = words[max(chunk.ref_start_idx - reach, 0) : chunk.ref_start_idx + reach]
            repeated += sum(word in around for word in more)
    return Slips(min(repeated, len(words)), skipped)


def robustness(voice: Synthesizer, recogniser: Recogniser, texts: Sequence[str] | None = None) -> Robustness:
    """Let a voice say the sentences, the 50 by default, and count what the recogniser hears repeated and left out.

    The recogniser's own errors count as well: compare voices, or a voice with recordings, and believe differences.
    """
    texts = hard_sentences() if texts is None else texts
    heard = recogniser.transcribe_all([voice.synthesize(text) for text in texts])
    return summed([count_slips(text, words) for text, words in zip(texts, heard, strict=True)])


def summed(slips: Sequence[Slips]) -> Robustness:
    """The table's line of the slips of so many sentences. Raises UserError where there are none."""
    if not slips:
        raise UserError("robustness needs sentences, and there are none")
    wrong = sum(one.any for one in slips)
    return Robustness(sum(s.repeated for s in slips), sum(s.skipped for s in slips), wrong, wrong / len(slips))


def _words(text: str) -> list[str]:
    joined: list[str] = []
    alone = False
    for word in normalise(text, normaliser="whisper").split():
        kept = "".join(c for c in word if c.isalnum())
        if not kept or kept.isdigit() or kept == "one":
            joined += list(kept.replace("one", "1"))
        elif alone and len(kept) == 1:
            joined[-1] += kept
        else:
            joined.append(kept)
        alone = len(kept) == 1 and kept.isalpha()
    return joined
