"""Runs of ``vitalk train`` that speak: which system a file is of, and its voice in torch."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitalk.catalog import SYSTEMS, find
from vitalk.errors import UserError
from vitalk.speech.synthesizer import Streamer

if TYPE_CHECKING:
    from vitalk.speech.acoustic.training import AcousticTraining


def slug_of(model: str | Path) -> str | None:
    """The slug of the system whose acoustic model a safetensors file holds; None for anything else."""
    if Path(model).suffix != ".safetensors" or not Path(model).is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(model, "np") as file:
            form = (file.metadata() or {}).get("format", "")
    except SafetensorError:
        return None
    if form == "vitalk fastspeech2s":
        return "fastspeech2"
    return {f"vitalk {s.slug}": s.slug for s in SYSTEMS if s.family.startswith("speech")}.get(form)


def trained_voice(run: str | Path, vocoder: str | Path | None = None, device: str = "cpu") -> Streamer:
    """The voice of a run folder, or of its model.safetensors, which speaks in torch.

    vocoder: the run folder or model.safetensors of a vocoder trained on the same mel preset; None is Griffin-Lim, which
    needs no training and sounds so. The voice has the vocoder's rate, which may exceed the mel's. device: of torch.
    Raises UserError for folders without an acoustic model and for vocoders that do not fit.
    """
    from vitalk.speech.acoustic.training import read_trained
    from vitalk.speech.speaking import Chained, torch_voice, vocoder_for

    path, vocoder = _model(run), None if vocoder is None else _model(vocoder)
    slug = slug_of(path)
    if slug is None:
        raise UserError(f"{path} is no acoustic model of vitalk train; give the run folder of one")
    package = find(slug).package
    if read_trained(path)[0]["format"] != f"vitalk {slug}":  # FastSpeech 2s, which makes waveforms itself
        return import_module(f"{package}.speaking").trained_voice(path, vocoder, device)
    own = getattr(import_module(package), "trained_voice", None)
    if own is not None:  # a system whose voices do more than others, such as hearing references
        return own(path, vocoder, device)
    acoustic, about = import_module(f"{package}.training").load_for_voice(path)
    generator, rate = vocoder_for(about["mel"], vocoder, path)
    return torch_voice(Chained(acoustic, generator), about, path.parent.name or "trained", device, rate)


def load_training(model: str | Path) -> tuple["AcousticTraining", dict[str, Any]]:
    """(training module in eval mode, what is known about it) of the model.safetensors of any acoustic system.

    Raises UserError for files that are none.
    """
    from vitalk.speech.acoustic.training import AcousticTraining, load_module

    slug = slug_of(path := _model(model))
    if slug is None:
        raise UserError(f"{path} is no acoustic model of vitalk train; give the run folder of one")
    module = import_module(f"{find(slug).package}.training")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, AcousticTraining)]
    return load_module(path, next(kind for kind in kinds if getattr(kind, "FORMAT", "") == f"vitalk {slug}"))


def open_voice(name: str | Path, vocoder: str | Path | None = None) -> Streamer:
    """A voice by name or file, a peer, or a run folder with this vocoder: see ``vitalk.speech.peers.open_voice``."""
    if Path(name).is_dir() or Path(name).suffix == ".safetensors":
        return trained_voice(name, vocoder)
    from vitalk.speech.peers import open_voice as open_ready

    return open_ready(name)


def _model(run: str | Path) -> Path:
    path = Path(run) / "model.safetensors" if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise UserError(f"there is no {path}; train first, or give the folder that vitalk train wrote")
    return path
