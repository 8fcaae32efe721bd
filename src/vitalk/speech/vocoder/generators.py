"""Generators by name, fitted to a mel preset, and the files that keep them."""

import inspect
import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitalk.errors import UserError, nearest

from ..mel import MelSpec, mel_spec

NAMES = (
    "vocos", "hifigan-v1", "hifigan-v2", "hifigan-v3", "istftnet", "ms-istft", "mb-istft", "hifinet", "hifinet-large",
    "hifinet-istft",
)  # fmt: skip
FORMAT = "vitalk vocoder"
HOP_300: dict[str, dict[str, Any]] = {  # ours: the published rates multiply to a hop of 256
    "hifigan-v1": {"rates": (5, 5, 4, 3), "kernels": (11, 11, 8, 7)},
    "hifigan-v2": {"rates": (5, 5, 4, 3), "kernels": (11, 11, 8, 7)},
    "hifigan-v3": {"rates": (10, 6, 5), "kernels": (20, 12, 11)},
    "istftnet": {"rates": (10, 6), "kernels": (20, 12), "n_fft": 20, "hop": 5},
    "ms-istft": {"rates": (5, 3), "kernels": (15, 11), "n_fft": 20, "hop": 5},
    "mb-istft": {"rates": (5, 3), "kernels": (15, 11), "n_fft": 20, "hop": 5},
}


def create(name: str, spec: MelSpec, args: dict[str, Any] | None = None) -> nn.Module:
    """The generator ``name`` for mels of ``spec``: log-mel [batch, mels, frames] -> wave [batch, samples].

    name: one of ``NAMES``. args: of its class, over the published ones. Raises UserError for names and arguments that
    do not exist, and for rates that do not multiply to the hop. Those of ``hifinet`` make waves of another rate than
    the mel's, see ``output_rate``.
    """
    if name not in NAMES:
        raise UserError(f"there is no vocoder {name}; choose one of {', '.join(NAMES)}.{nearest(name, list(NAMES))}")
    make, known = _maker(name, spec)
    known = {**known, **(HOP_300.get(name, {}) if spec.hop == 300 else {}), "n_mels": spec.n_mels, **(args or {})}
    allowed = list(inspect.signature(make).parameters)
    if wrong := sorted(set(known) - set(allowed)):
        raise UserError(f"{name} has no argument {wrong[0]}; it has {', '.join(allowed)}.{nearest(wrong[0], allowed)}")
    generator = make(**known)
    if name.startswith("hifinet"):
        if spec.rate * generator.hop % spec.hop:
            raise UserError(
                f"{name} makes {generator.hop} samples of {spec.hop} at {spec.rate} Hz, which is no whole rate; take "
                "the mel preset 16k, or give rates and kernels"
            )
    elif generator.hop != spec.hop:
        raise UserError(
            f"{name} makes {generator.hop} samples a frame, but the hop is {spec.hop}; give rates and kernels for it"
        )
    return generator


def output_rate(generator: nn.Module, spec: MelSpec) -> int:
    """Rate of the waves in Hz: the mel's own, unless the generator makes more samples a frame (``hifinet``)."""
    return spec.rate * generator.hop // spec.hop


def save_vocoder(path: Path, generator: nn.Module, name: str, args: dict[str, Any], mel: str) -> None:
    """Write a generator as safetensors whose metadata says how to build it; mel: its preset."""
    from vitalk.files import write_tensors

    told = {"format": FORMAT, "generator": name, "generator_args": json.dumps(args), "mel": mel}
    write_tensors(path, generator.state_dict(), told)


def load_vocoder(path: str | Path) -> tuple[nn.Module, str]:
    """(generator in eval mode with its weight norm folded, name of its mel preset) of a file of ``save_vocoder``.

    Raises UserError where it is none.
    """
    meta, state = read_vocoder(path)
    generator = create(meta["generator"], mel_spec(meta["mel"]), json.loads(meta["generator_args"]))
    generator.load_state_dict(state)
    if meta["generator"] != "vocos":
        from .hifigan import remove_weight_norm

        remove_weight_norm(generator)
    return generator.eval(), meta["mel"]


def read_vocoder(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and weights of a file of ``save_vocoder``. Raises UserError where it is none."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise UserError(f"there is no vocoder at {path}")
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read as a vocoder ({error}); train it again") from None
    if meta.get("format") != FORMAT:
        raise UserError(f"{path} holds no vocoder; give the model.safetensors of a vocoder's training")
    return meta, state


def _maker(name: str, spec: MelSpec) -> tuple[type[nn.Module], dict[str, Any]]:
    if name.startswith("hifinet"):
        from . import hifinet

        return hifinet.maker(name, spec)
    if name == "vocos":
        from .vocos import Vocos

        return Vocos, {"n_fft": spec.n_fft, "hop": spec.hop, "padding": "center" if spec.center else "same"}
    if name.startswith("hifigan"):
        from .hifigan import SIZES, HifiGan

        return HifiGan, SIZES[name.removeprefix("hifigan-")]
    from .istftnet import IstftNet, MultiStreamIstft

    if name == "istftnet":
        return IstftNet, {}
    return MultiStreamIstft, {"synthesis": "pqmf" if name == "mb-istft" else "learned"}
