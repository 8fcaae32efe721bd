"""The symbol table: phoneme characters and the ids that every model of vitalk shares.

The order is fixed for ever: trained weights depend on it. New symbols are appended, up to ``SIZE``, which is the number
of rows an embedding has. The design is ours; it covers the IPA that espeak-ng 1.52 writes for all of its languages and
the letters of Kokoro's vocabulary.
"""

import re
import unicodedata
from collections.abc import Collection

PAD = "_"
PUNCTUATION = ';:,.!?¡¿—…"«»“”()'
# In this order: Latin letters; other letters of the IPA; the block of IPA Extensions; tones; stress, length and other
# spacing marks; combining marks; arrows and signs; capitals, as Kokoro's vocabulary has for diphthongs.
_LATIN = "abcdefghijklmnopqrstuvwxyz"
_OTHERS = "æçðøħŋœǀǁǂǃβθχᵻᵊᵝᵐⁿɫᵿꭧ"
_EXTENSIONS = "".join(chr(code) for code in range(0x250, 0x2B0) if chr(code) not in _OTHERS)
_TONES = "123456789˥˦˧˨˩"
_MARKS = "ˈˌːˑʰʱʲʳʴʵʶʷʸˠˡˢˣˤ˞ˀˁʼʹˇ'-^|‖.‿"
_COMBINING = "".join(
    chr(code)
    for code in (
        0x300, 0x301, 0x302, 0x303, 0x304, 0x306, 0x308, 0x30A, 0x30B, 0x30C, 0x30D, 0x30F, 0x311, 0x318, 0x319, 0x31A,
        0x31C, 0x31D, 0x31E, 0x31F, 0x320, 0x324, 0x325, 0x327, 0x328, 0x329, 0x32A, 0x32C, 0x32F, 0x330, 0x334, 0x339,
        0x33A, 0x33B, 0x33C, 0x33D, 0x346, 0x348, 0x35C, 0x361,
    )
)  # fmt: skip
_SIGNS = "↓↑→↗↘"
_CAPITALS = "AIOQSTWY"
_MNEMONICS = "ε`#[ZNX"  # what espeak writes where its languages name no IPA

SYMBOLS: tuple[str, ...] = tuple(
    dict.fromkeys(
        PAD
        + PUNCTUATION
        + " "
        + _LATIN
        + _OTHERS
        + _EXTENSIONS
        + _TONES
        + _MARKS
        + _COMBINING
        + _SIGNS
        + _CAPITALS
        + _MNEMONICS
    )
)
SIZE = 320
# What a voice says that never met a symbol: the nearest one, in steps until it knows one; "" for nothing. Ours.
_NEAR = {
    **dict.fromkeys("—;:()", ","), **dict.fromkeys("…!?", "."), **dict.fromkeys("«»“”", '"'),
    **dict.fromkeys('¿¡"', ""), **dict.fromkeys("rʁʀɾɽ", "ɹ"), **dict.fromkeys("xçħχɦ", "h"),
    **dict.fromkeys("øœɘɵ", "ɜ"), **dict.fromkeys("yɨʏᵻ", "ɪ"), **dict.fromkeys("ɲŋɳ", "n"),
    **dict.fromkeys("ʎɫɭɬ", "l"), **dict.fromkeys("ɣɟgɢ", "ɡ"), **dict.fromkeys("cq", "k"), **dict.fromkeys("ʂɕ", "ʃ"),
    **dict.fromkeys("ʐʑ", "ʒ"), **dict.fromkeys("βʋ", "v"), **dict.fromkeys("ɚɐ", "ə"),
    "ɸ": "f", "ɱ": "m", "ɯ": "u", "ɤ": "ʌ", "ɒ": "ɑ", "ɝ": "ɜ", "ʈ": "t", "ɖ": "d",
}  # fmt: skip
_STOPS = ",;:.!?…"
_IDS = {symbol: index for index, symbol in enumerate(SYMBOLS)}


def _known(phonemes: str) -> list[str]:
    # What espeak composes (ã) is a letter and its mark here, so that 26 letters and 40 marks make all of them; ç stays.
    apart = (c if c in _IDS else unicodedata.normalize("NFD", c) for c in unicodedata.normalize("NFC", phonemes))
    return list("".join(apart))


def to_ids(phonemes: str) -> list[int]:
    """Ids of the phonemes, one a character; characters that are no symbols are dropped (see ``unknown``)."""
    return [_IDS[c] for c in _known(phonemes) if c in _IDS]


def utterance_ids(phonemes: str) -> list[int]:
    """Ids of a whole utterance: its phonemes between two spaces, which stand for the silence around speech.

    Aligners need something for that silence to belong to; what is spoken must be written as what was learnt.
    """
    return to_ids(f" {phonemes.strip()} ")


def adapted(phonemes: str, known: Collection[str]) -> str:
    """The phonemes in the symbols that a voice has learnt: the nearest of those for each other one.

    Brackets and dashes become commas; marks that nothing comes near are left out. Where all are known, nothing changes.
    """
    letters = _known(phonemes)
    if all(c in known for c in letters):
        return phonemes

    def nearest(c: str) -> str:
        while c and c not in known:
            c = _NEAR.get(c, "")
        return c

    text = "".join(map(nearest, letters))
    # Stops stand behind a word and before a space; of several in a row the last one counts.
    text = re.sub(rf"\s*([{_STOPS}])(?:\s*[{_STOPS}])*(?=[^\s{_STOPS}\"])", r"\1 ", text)
    text = re.sub(rf"\s*(?:[{_STOPS}]\s*)*([{_STOPS}])", r"\1", text)
    return " ".join(text.lstrip(f"{_STOPS} ").split())


def to_phonemes(ids: list[int]) -> str:
    """The phonemes of ids, padding left out. Raises IndexError for ids beyond the table."""
    return "".join(SYMBOLS[i] for i in ids if i)


def unknown(phonemes: str) -> str:
    """The characters that ``to_ids`` drops, each once, in the order of their appearance."""
    return "".join(dict.fromkeys(c for c in _known(phonemes) if c not in _IDS))
