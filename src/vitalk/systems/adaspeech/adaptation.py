"""The third stage: a new voice from some sentences, by tuning what the voice conditions and nothing else."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.adapting import adapt_for, one_voice, voice_file
from vitalk.speech.acoustic.training import load_module
from vitalk.speech.align.training import AlignerTraining
from vitalk.speech.audio import Audio
from vitalk.speech.features import Speech
from vitalk.speech.mel import mel_spec
from vitalk.training import arguments_of

from .conditional import norms
from .model import AdaSpeech
from .training import ALIGNER, AdaSpeechTraining
from .voices import Adapter, fingerprint, reference_mel, reference_of

Part = Literal["embedding", "norm", "conditional", "decoder", "all"]


class Adaptation(AdaSpeechTraining):
    """Trains one new voice on a copy of a source model; ``Adaptation.of`` makes it.

    Losses and what the network is told are those of training. Weights outside the tuned part stay as they are, and so
    do the statistics of a post-net.
    """

    MONITOR = None

    @classmethod
    def of(
        cls, source: AdaSpeechTraining, part: Part = "conditional", lr: float = 1e-3, steps: int = 2000
    ) -> "Adaptation":
        """The adaptation of a trained source model, whose weights are copied.

        part: see ``tuned``. lr: of Adam, warmed up for a tenth of ``steps``, lowered along a cosine (ours, as the paper
        states none).
        """
        told = {"lr": lr, "schedule": "cosine", "warmup_steps": max(steps // 10, 1), "min_lr": lr / 100}
        module = cls(**{**arguments_of(source), **told, "n_speakers": 1, "predictor_start": 0})
        module.net = with_new_voice(source.net)
        module.net.requires_grad_(False)
        for weight in tuned(module.net, part):
            weight.requires_grad_(True)
        return module.train()

    def train(self, mode: bool = True) -> "Adaptation":  # noqa: D102
        super().train(mode)
        if self.net is not None and self.net.postnet is not None:
            self.net.postnet.eval()
        return self


def with_new_voice(net: AdaSpeech) -> AdaSpeech:
    """A copy of a network with one voice only, which is nobody's: the mean of its voices (ours)."""
    net = deepcopy(net)
    net.voices = nn.Embedding.from_pretrained(net.voices.weight.mean(0, keepdim=True), freeze=False)
    net.references = net.references.mean(0, keepdim=True)
    return net


def tuned(net: AdaSpeech, part: Part) -> list[nn.Parameter]:
    """The weights that adaptation moves: the voice's vector, and

    embedding: nothing else (the paper's first baseline). norm: scale and bias of the decoder's norms as they are, not
    through the voice. conditional: the maps from the vector to them (AdaSpeech). decoder: the mel decoder and what
    is behind it (its second baseline). all: everything.
    """
    conditional = norms(net).values()
    plain = [m for m in net.decoder.modules() if isinstance(m, nn.LayerNorm)]
    found = {
        "embedding": [],
        "norm": [b for n in conditional for b in (n.scale.bias, n.bias.bias)]
        + [p for m in plain for p in m.parameters()],
        "conditional": [p for n in conditional for p in n.parameters()],
        "decoder": [
            p for m in (net.decoder, net.head, net.mel_norm, net.postnet) if m is not None for p in m.parameters()
        ],
        "all": [p for p in net.parameters() if p is not net.voices.weight],
    }
    return [net.voices.weight, *found[part]]


@dataclass(frozen=True)
class Adapted:
    """What ``adapt`` did.

    path: the file. sentences: that it trained on. tuned: weights that it moved. before, after: mel L1 of the held-out
    sentences, see ``spoken_error``.
    """

    path: Path
    adapter: Adapter
    sentences: int
    tuned: int
    before: float
    after: float


def adapt(
    run: str | Path,
    folder: str | Path,
    output: str | Path | None = None,
    speaker: str | None = None,
    reference: str | Path | Audio | None = None,
    steps: int = 2000,
    lr: float = 1e-3,
    aligner: str | Path | None = None,
    batch_frames: int = 6_000,
    cache: str | None = None,
) -> Adapted:
    """Adapt a trained AdaSpeech to a new voice and store it (arXiv 2103.00993, section 2.3).

    run: folder, or model.safetensors, of the source model's training; it stays as it is. folder: a corpus of about 20
    sentences of the voice, see ``open_corpus``; a twentieth, one at least, is held out to tell what came of it.
    output: the file, by default voices/FOLDER.safetensors of the run folder, where it becomes a speaker of the run.
    speaker: of the folder, where it has several. reference: a recording whose sound the voice shall have; by default a
    typical one of the folder. steps: of Adam, 2,000 in the paper. aligner: model.safetensors of the aligner that gives
    durations; that of the run by default. batch_frames, cache: see ``Speech``.
    Raises UserError for runs, folders and references that are none, with what to do.
    """
    path = Path(run) / "model.safetensors" if Path(run).is_dir() else Path(run)
    source, about = load_module(path, AdaSpeechTraining)
    if not norms(source.net):
        raise UserError(f"{path} has no conditional layer norms to adapt; train it with conditional: true")
    target = voice_file(path, folder, output, speaker, about["speakers"])
    heard = None
    if reference is not None:
        audio = reference if isinstance(reference, Audio) else Audio.load(reference)
        heard = [reference_mel(audio, mel_spec(about["mel"]))]
    corpus = _corpus(folder, speaker, about, path.parent, aligner, batch_frames, cache)
    module = Adaptation.of(source, lr=lr, steps=steps)
    module.eval()
    module.net.references[0] = reference_of(module.net, heard or list(_mels(corpus)))
    before = spoken_error(module, corpus)
    adapt_for(steps, module, corpus)
    net = module.net.cpu()
    adapter = Adapter.of(net, target.stem, fingerprint(source.net))
    adapter.save(target)
    moved = sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
    return Adapted(target, adapter, len(corpus.train), moved, before, spoken_error(module, corpus))


def _corpus(
    folder: str | Path, speaker: str | None, about: dict[str, Any], run: Path, aligner: str | Path | None,
    batch_frames: int, cache: str | None,
) -> Speech:  # fmt: skip
    aligner = Path(aligner or run / ALIGNER)
    if not aligner.is_file():
        raise UserError(f"there is no aligner at {aligner}; name the one that the model was trained with as --aligner")
    told = {"lang": about["lang"], "mel": about["mel"], "batch_frames": batch_frames, "cache": cache}
    corpus = Speech(**one_voice(folder, speaker, "20 are enough and 10 the least to try"), **told)
    corpus.setup()
    corpus.use(AlignerTraining.load(aligner))
    return corpus


def _mels(corpus: Speech) -> Iterator[Tensor]:
    return (torch.from_numpy(corpus.cache.fetch(clip)["mel"]).float() for clip in corpus.train)


@torch.inference_mode()
def spoken_error(module: AdaSpeechTraining, corpus: Speech) -> float:
    """Mean mel L1 of the held-out utterances, said as a voice says them: predicted latents, its own reference.

    Durations, pitch and energy are the recordings', so that the mels can be compared.
    """
    module.eval()
    total, count = 0.0, 0
    for batch in corpus.whole_dataloader("test"):
        told, targets = module.told(batch)
        out = module.net(**{**told, "utterance": None, "latents": None})
        frames = int(batch["mel_lengths"].sum())
        total, count = total + frames * float(module.net.losses(out, targets)["mel"]), count + frames
    return total / count
