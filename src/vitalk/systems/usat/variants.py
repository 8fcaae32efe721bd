"""Models in the sizes that are worth a name."""

from typing import Any

from .model import Usat


def usat(n_symbols: int, **options: Any) -> Usat:
    """The paper's size: VITS' with a memory of 1,000 slots, ECAPA-TDNN and the HiFi-GAN generator V1.

    options: of ``Usat``.
    """
    return Usat(n_symbols, **options)


def usat_small(n_symbols: int, **options: Any) -> Usat:
    """For a plain CPU (ours): latents of 64 channels, and a decoder that makes mels, for which vocoders are had."""
    text = {"dim": 96, "depth": 3, "hidden": 192}
    latents = {"latent": 64, "posterior_layers": 6, "memory": 256, "memory_heads": 2, "flow_layers": 2}
    ecapa = {"channels": (64, 64, 64, 192), "kernels": (5, 3, 3, 1), "dilations": (1, 2, 3, 1), "attention": 32,
             "squeeze": 32}  # fmt: skip
    voice = {"voice": 96, "ecapa": ecapa, "duration_dropout": 0.3, "decoder": "mel", "mel": "vitalk"}
    return Usat(n_symbols, **{**text, **latents, **voice, **options})
