"""Voices apart from the model: what adaptation stores of one, and a shared model that speaks with all of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.adapting import voice_files
from vitalk.speech.acoustic.training import fingerprint, read_trained

from .adapters import Adapters, adapter_weights, insert, sharing
from .model import Usat

FORMAT = "vitalk usat voice"


@dataclass(frozen=True)
class AdaptedVoice:
    """All that is stored of a voice: its vector [voice], the weights of its adapters, and the model that they fit.

    name: of the voice. kinds: which adapters. weights: by their names in the adapted network. model: ``fingerprint``.
    """

    name: str
    vector: Tensor
    weights: dict[str, Tensor]
    kinds: Adapters
    model: str

    @classmethod
    def of(cls, net: Usat, name: str, kinds: Adapters, model: str) -> "AdaptedVoice":
        """The voice of an adapted network."""
        weights = {key: weight.detach().clone() for key, weight in adapter_weights(net).items()}
        return cls(name, net.voices.detach()[0].clone(), weights, kinds, model)

    @property
    def numbers(self) -> int:
        """How many numbers are stored."""
        return self.vector.numel() + sum(weight.numel() for weight in self.weights.values())

    def save(self, path: Path) -> Path:
        """Write it as safetensors, whole or not at all."""
        from vitalk.files import write_tensors

        told = {"format": FORMAT, "name": self.name, "model": self.model, "adapters": json.dumps(asdict(self.kinds))}
        write_tensors(path, {"vector": self.vector, **self.weights}, told)
        return path

    @classmethod
    def load(cls, path: Path) -> "AdaptedVoice":
        """What ``save`` wrote. Its name is that of the file. Raises UserError for files that hold no voice."""
        meta, state = read_trained(path)
        if meta.get("format") != FORMAT or not {"vector"} <= set(state):
            raise UserError(f"{path} holds no voice of USAT; make one with vitalk adapt, or remove it")
        vector = state.pop("vector")
        return cls(Path(path).stem, vector, state, Adapters(**json.loads(meta["adapters"])), meta["model"])


def voices_of(net: Usat, path: Path, speakers: Sequence[str]) -> list[AdaptedVoice]:
    """The voices/NAME.safetensors in a run folder, in order of names.

    path: the model's file; speakers: its own. Raises UserError for voices of another model and for a taken name.
    """
    files = voice_files(path, speakers)
    mark = fingerprint(net) if files else ""
    found = [AdaptedVoice.load(file) for file in files]
    for voice in found:
        if voice.model != mark:
            raise UserError(f"the voice {voice.name} was made for another model; adapt it again, or remove it")
    return found


@torch.no_grad()
def adapted(net: Usat, voice: AdaptedVoice) -> Usat:
    """A network that speaks with a voice, and shares all else with ``net``, which stays as it is.

    Raises UserError where the voice is for another model.
    """
    own = insert(sharing(net), voice.kinds)
    weights = adapter_weights(own)
    if {key: weight.shape for key, weight in weights.items()} != {key: w.shape for key, w in voice.weights.items()}:
        raise UserError(f"the voice {voice.name} was made for another model; adapt it again, or remove it")
    for key, weight in weights.items():
        weight.copy_(voice.weights[key])
    del own.voices
    own.voices = nn.Parameter(voice.vector[None].clone(), requires_grad=False)
    return own.eval()
