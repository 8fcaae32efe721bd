"""Voices apart from the model: what is stored of one, and all of them folded into tables."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.training import fingerprint, read_trained
from vitalk.speech.audio import Audio
from vitalk.speech.mel import MelSpec, log_mel
from vitalk.speech.reference import speaker_reference

from .conditional import FoldedLayerNorm, norms
from .model import AdaSpeech

FORMAT = "vitalk adaspeech voice"


@dataclass(frozen=True)
class Adapter:
    """All that is stored of a voice: numbers that a shared model is told, and the model that they fit.

    name: of the voice. speaker, reference: its vector and that of an utterance, [dim]. affine: gamma and beta of every
    conditional norm by name, [2, width]. model: ``fingerprint`` of the model.
    At the paper's size these are 256 + 256 + 9 * 2 * 256 = 5,120 numbers: its 4,864 (arXiv 2103.00993, table 1) and
    the utterance's vector, which it takes anew from a recording.
    """

    name: str
    speaker: Tensor
    reference: Tensor
    affine: dict[str, Tensor]
    model: str

    @classmethod
    @torch.no_grad()
    def of(cls, net: AdaSpeech, name: str, model: str, voice: int = 0) -> "Adapter":
        """A voice of an unfolded network, by number."""
        vector = net.voices.weight[voice]
        affine = {key: norm.affine(vector[None])[0].clone() for key, norm in norms(net).items()}
        return cls(name, vector.clone(), net.references[voice].clone(), affine, model)

    @property
    def numbers(self) -> int:
        """How many numbers are stored."""
        return sum(value.numel() for value in (self.speaker, self.reference, *self.affine.values()))

    def save(self, path: Path) -> Path:
        """Write it as safetensors, whole or not at all."""
        from vitalk.files import write_tensors

        state = {"speaker": self.speaker, "reference": self.reference}
        state |= {f"affine.{key}": value for key, value in self.affine.items()}
        write_tensors(path, state, {"format": FORMAT, "name": self.name, "model": self.model})
        return path

    @classmethod
    def load(cls, path: Path) -> "Adapter":
        """What ``save`` wrote. Its name is that of the file. Raises UserError for files that hold no voice."""
        meta, state = read_trained(path)
        if meta.get("format") != FORMAT or not {"speaker", "reference"} <= set(state):
            raise UserError(f"{path} holds no voice of AdaSpeech; make one with vitalk adapt, or remove it")
        affine = {key.removeprefix("affine."): value for key, value in state.items() if key.startswith("affine.")}
        return cls(Path(path).stem, state["speaker"], state["reference"], affine, meta.get("model", ""))


@torch.no_grad()
def fold(net: AdaSpeech, adapters: Sequence[Adapter] = ()) -> AdaSpeech:
    """A copy for inference whose voices are tables: those of the network, then the adapters, in their order.

    Gamma and beta of each conditional norm are computed once and its maps dropped (arXiv 2103.00993, section 2.3).
    The rows of the network's own voices are the same bits whatever is adapted beside them.
    Raises UserError for adapters of another network.
    """
    known, mark = norms(net), fingerprint(net) if adapters else ""
    for adapter in adapters:
        if adapter.model != mark or set(adapter.affine) != set(known):
            raise UserError(f"the voice {adapter.name} was made for another model; adapt it again, or remove it")
    folded = deepcopy(net)
    vectors = net.voices.weight
    for name, norm in known.items():
        rows = [norm.affine(vectors), *(adapter.affine[name][None] for adapter in adapters)]
        folded.set_submodule(name, FoldedLayerNorm(torch.cat(rows)))
    folded.voices = nn.Embedding.from_pretrained(torch.stack([*vectors, *(a.speaker for a in adapters)]))
    folded.references = torch.stack([*net.references, *(a.reference for a in adapters)])
    folded.folded = True
    return folded.eval()


@torch.no_grad()
def reference_of(net: AdaSpeech, mels: Sequence[Tensor]) -> Tensor:
    """The utterance vector [dim] to speak with: of the recording among ``mels`` [mels, frames] nearest to their mean.

    A vector of one recording, as training saw them, of which the paper takes any (the choice is ours).
    """
    if net.utterance is None:
        return torch.zeros_like(net.references[0])
    vectors = torch.stack([net.utterance(mel[None].to(net.references.device))[0] for mel in mels])
    return vectors[(vectors - vectors.mean(0)).square().sum(1).argmin()]


def reference_mel(audio: Audio, spec: MelSpec) -> Tensor:
    """The mel [mels, frames] of a recording to sound like, cut and levelled as training does it.

    Raises UserError where there is less than a second of speech, or sound without a voice.
    """
    return log_mel(torch.from_numpy(speaker_reference(audio, spec).samples)[None], spec)[0]
