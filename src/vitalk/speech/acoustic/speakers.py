"""Speakers, and other things that acoustic models know by number."""

import torch
from torch import Tensor, nn

from vitalk.errors import UserError


def numbered(name: str, given: Tensor, count: int) -> Tensor:
    """Numbers ``given`` [batch], as they are. Raises UserError naming them where they do not go from 0 to count - 1."""
    # An exported graph cannot ask; those who run it look the names up.
    if not torch.compiler.is_compiling() and not 0 <= int(given.min()) <= int(given.max()) < count:
        raise UserError(f"there is no {name} {given.tolist()}; numbers go from 0 to {count - 1}")
    return given


def vectors_of(name: str, part: nn.Module | None, given: Tensor | None) -> Tensor | None:
    """The vectors [batch, dim] that a part of a model, such as a table of speakers, has for what the model is told.

    None where there is neither. Raises UserError where one is there without the other, and for numbers that a table
    does not have.
    """
    if (part is None) != (given is None):
        raise UserError(f"this model {'needs a' if part is not None else 'knows no'} {name}")
    if isinstance(part, nn.Embedding):
        numbered(name, given, part.num_embeddings)
    return None if part is None else part(given)


def add_speaker(x: Tensor, voices: nn.Embedding | None, speaker: Tensor | None) -> Tensor:
    """x [batch, time, dim] with the vectors of the speakers [batch] added, where the model has several.

    Raises UserError as ``vectors_of``.
    """
    vectors = vectors_of("speaker", voices, speaker)
    return x if vectors is None else x + vectors[:, None]
