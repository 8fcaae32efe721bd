"""Text to phonemes: cleaning, sentences, words for numbers and signs, SSML, espeak-ng, symbol ids. Needs no torch."""

from .front import Front, Utterance
from .normalise import normalise
from .phonemes import Phonemizer, languages
from .sentences import split_sentences
from .ssml import Span, parse_ssml
from .symbols import SYMBOLS, to_ids, to_phonemes

__all__ = [
    "SYMBOLS", "Front", "Phonemizer", "Span", "Utterance", "languages", "normalise", "parse_ssml", "split_sentences",
    "to_ids", "to_phonemes",
]  # fmt: skip
