"""Models in the sizes that are worth a name."""

from typing import Any

from .generator import Variational
from .model import PortaSpeech, PostNet


def portaspeech(n_symbols: int, **options: Any) -> PortaSpeech:
    """The paper's normal size, width 192. options: of ``PortaSpeech``."""
    return PortaSpeech(n_symbols, **options)


def portaspeech_small(n_symbols: int, **options: Any) -> PortaSpeech:
    """The paper's small size, width 128, a third of the weights of the normal one."""
    text = {"dim": 128, "depth": 3, "word_depth": 3, "hidden": 512, "kernel": 3}
    variational = Variational(128, 3, 8, 3, prior=3, prior_dim=32)
    sizes = {**text, "variational": variational, "postnet": PostNet(128, 8, temperature=0.6)}
    return PortaSpeech(n_symbols, **{**sizes, **options})


VARIANTS = {"normal": portaspeech, "small": portaspeech_small}
