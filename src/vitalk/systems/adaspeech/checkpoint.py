"""Checkpoints of the public reimplementations, renamed to ours."""

import re

from torch import Tensor

from vitalk.nn.checkpoints import renamed
from vitalk.systems.fastspeech2.checkpoint import from_ming024

PARTS = {
    "utterance_encoder": "utterance", "UtteranceEncoder": "utterance",
    "phoneme_level_encoder": "phoneme", "PhonemeLevelEncoder": "phoneme",
    "phoneme_level_predictor": "phoneme_predictor", "PhonemeLevelPredictor": "phoneme_predictor",
    "phone_level_embed": "phoneme_embedding",
}  # fmt: skip
PART = re.compile(rf"^({'|'.join(PARTS)})\.")
RENAMES = (
    (r"\.conv\.(\d+)\.0\.", r".convs.\1."),
    (r"\.conv\.(\d+)\.2\.layer_norm\.", r".norms.\1."),
    (r"\.conv\.conv1d_(\d+)\.", lambda found: f".convs.{int(found[1]) - 1}."),
    (r"\.conv\.layer_norm_(\d+)\.layer_norm\.", lambda found: f".norms.{int(found[1]) - 1}."),
)
WHOLE = (
    (r"(^|\.)W_(scale|bias)\.", r"\1\2."),
    (r"^layer_norm\.", "mel_norm."),
    (r"^speakers\.", "voices."),
    (r"^lang_emb\.", "languages."),
)


def from_rishikksh20(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The acoustic encoders, phoneme predictor and embedding of a state dict of rishikksh20/AdaSpeech.

    Names with or without ``module.``. The rest of that model, pre-norm blocks without conditional norms for a single
    speaker, is another one than ours and is left out.
    """
    named = {key.removeprefix("module."): value for key, value in state.items()}
    return {_acoustic(key): value for key, value in named.items() if PART.match(key)}


def from_tuanh123789(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of tuanh123789/AdaSpeech (the "model" entry of its files) for ``adaspeech_tuanh``.

    Names with or without ``module.``; of a model without conditional norms too (its ``cln: False``), whose last norm
    is conditional all the same.
    """
    named = {key.removeprefix("module."): value for key, value in state.items()}
    acoustic = from_rishikksh20(named)
    rest = from_ming024({key: value for key, value in named.items() if not PART.match(key)})
    return acoustic | {renamed(name, WHOLE): value for name, value in rest.items()}


def _acoustic(name: str) -> str:
    return renamed(PART.sub(lambda found: f"{PARTS[found[1]]}.", name), RENAMES)
