"""Fine-grained adaptation: a voice from a minute of speech, by adapters beside a frozen model (arXiv 2404.18094)."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitalk.speech.acoustic.adapting import adapt_for, one_voice, voice_file
from vitalk.speech.acoustic.fft_block import length_mask
from vitalk.speech.acoustic.training import AcousticTraining, fingerprint, load_module
from vitalk.speech.corpus import Clip
from vitalk.training import arguments_of

from .adapters import Adapters, adapter_weights, insert
from .data import PairedSpeech
from .model import Usat, linear
from .training import UsatTraining, mean_voice
from .voices import AdaptedVoice

Part = Literal["voice", "adapters", "all"]


class Adaptation(UsatTraining):
    """Trains one voice on a copy of a trained model; ``Adaptation.of`` makes it.

    Losses are "kl" and "duration" alone (the paper's L_ada), without discriminators; the speaker encoder is gone, in
    its place stands a vector that learns. Utterances need no references.
    """

    MONITOR = None

    @classmethod
    def of(
        cls,
        source: UsatTraining,
        voice: Tensor,
        part: Part = "adapters",
        kinds: Adapters = Adapters(),
        lr: float = 1e-3,
        steps: int = 1500,
    ) -> "Adaptation":
        """The adaptation of a trained model, whose weights are copied.

        voice: the vector [voice] to begin with, the mean of the references' (``mean_voice``). part: what learns beside
        it, see ``tuned``. kinds: of the adapters. lr: of AdamW, warmed up for a tenth of ``steps`` and lowered along a
        cosine (ours).
        """
        told = {"lr": lr, "schedule": "cosine", "warmup_steps": max(steps // 10, 1), "min_lr": lr / 100}
        module = cls(**{**arguments_of(source), **told, "n_speakers": 1})
        net = deepcopy(source.net)
        net.speaker = None
        del net.voices
        net.voices = nn.Parameter(voice.detach()[None].clone())
        module.net = insert(net, kinds) if part == "adapters" else net
        net.requires_grad_(False)
        for weight in tuned(net, part):
            weight.requires_grad_(True)
        return module.train()

    def oppose(self) -> None:
        """There are no adversaries."""

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:  # noqa: D102
        lengths = batch["mel_lengths"]
        mask = length_mask(lengths, int(lengths.max()))
        with torch.no_grad():
            mean, logs = self.net.encode(linear(batch["wave"], self.net.spec), mask)
            z = (mean + torch.randn_like(mean) * logs.exp()).masked_fill(~mask[:, None], 0.0)
        voice = self.net.voices.expand(len(z), -1)
        return self.net.teach(z, logs, lengths, batch["ids"], batch["text_lengths"], voice).losses

    def weigh(self, losses: dict[str, Tensor]) -> Tensor:
        """The sum of the losses, each by its weight."""
        return AcousticTraining.weigh(self, losses)


def tuned(net: Usat, part: Part) -> list[nn.Parameter]:
    """The weights that adaptation moves: the voice's vector, and

    voice: nothing else. adapters: the adapters. all: text encoder, timbre flow and duration predictor, all that L_ada
    reaches without moving what the latents are; VAE and decoder stay.
    """
    reached = (net.symbols, net.text, net.prior, net.flow, net.duration)
    found = {
        "voice": [],
        "adapters": list(adapter_weights(net).values()),
        "all": list(chain.from_iterable(module.parameters() for module in reached)),
    }
    return [net.voices, *found[part]]


@dataclass(frozen=True)
class Adapted:
    """What ``adapt`` did.

    path: the file. sentences: that it trained on. total: weights of the model. before, after: L_kl + L_dur of the
    held-out sentences, see ``held_out``.
    """

    path: Path
    voice: AdaptedVoice
    sentences: int
    total: int
    before: float
    after: float


def adapt(
    run: str | Path,
    folder: str | Path,
    output: str | Path | None = None,
    speaker: str | None = None,
    steps: int = 1500,
    lr: float = 1e-3,
    kinds: Adapters = Adapters(),
    batch_frames: int = 6_000,
    cache: str | None = None,
) -> Adapted:
    """Adapt a trained USAT to a new voice and store it.

    run: folder, or model.safetensors, of the model's training; it stays as it is. folder: a corpus of about a minute of
    the voice, see ``open_corpus``; a twentieth, one utterance at least, is held out to tell what came of it. output:
    the file, by default voices/FOLDER.safetensors of the run folder, where it becomes a speaker of the run. speaker: of
    the folder, where it has several. steps: 1,500 in the paper. batch_frames, cache: see ``Speech``.
    Raises UserError for runs and folders that are none, with what to do.
    """
    path = Path(run) / "model.safetensors" if Path(run).is_dir() else Path(run)
    source, about = load_module(path, UsatTraining)
    target = voice_file(path, folder, output, speaker, about["speakers"])
    corpus = _corpus(folder, speaker, about, batch_frames, cache)
    module = Adaptation.of(source, mean_voice(source.net, waves(corpus, corpus.train)), kinds=kinds, lr=lr, steps=steps)
    before = held_out(module, corpus)
    adapt_for(steps, module, corpus)
    net = module.net.cpu()
    voice = AdaptedVoice.of(net, target.stem, kinds, fingerprint(source.net))
    voice.save(target)
    total = sum(weight.numel() for weight in source.net.parameters())
    return Adapted(target, voice, len(corpus.train), total, before, held_out(module, corpus))


def waves(corpus: PairedSpeech, clips: list[Clip]) -> Iterator[Tensor]:
    """The waves of clips, one after the other."""
    return (corpus.framed_wave(clip) for clip in clips)


@torch.inference_mode()
def held_out(module: Adaptation, corpus: PairedSpeech) -> float:
    """L_kl in nats a frame plus L_dur in nats a symbol, of the held-out utterances; noise is always the same."""
    module.eval()
    sums = {"kl": [0.0, 0], "duration": [0.0, 0]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for batch in corpus.whole_dataloader("test"):
            batch = {key: x.to(module.device) if isinstance(x, Tensor) else x for key, x in batch.items()}
            found = module.losses(batch)
            for name, count in (("kl", "mel_lengths"), ("duration", "text_lengths")):
                number = int(batch[count].sum())
                sums[name] = [sums[name][0] + number * float(found[name]), sums[name][1] + number]
    return sum(total / count for total, count in sums.values())


def _corpus(
    folder: str | Path, speaker: str | None, about: dict[str, Any], batch_frames: int, cache: str | None
) -> PairedSpeech:
    told = {"lang": about["lang"], "mel": about["mel"], "batch_frames": batch_frames, "cache": cache}
    corpus = PairedSpeech(**one_voice(folder, speaker, "a minute of speech is enough"), references=False, **told)
    corpus.setup()
    return corpus
