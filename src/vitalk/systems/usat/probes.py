"""What can be read off vectors and latents by a linear probe, and what a word costs: the measures of the claims."""

import re
from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import length_mask
from vitalk.speech.align.search import path_of
from vitalk.speech.corpus import Clip
from vitalk.speech.text.symbols import to_phonemes

from .adaptation import Adaptation
from .data import PairedSpeech
from .model import likelihood, linear
from .training import UsatTraining


def ridge(x: Tensor, y: Tensor, asked: Tensor, strength: float = 1.0) -> Tensor:
    """Classes int64 [asked] that a linear classifier by ridge regression gives to features [asked, dim].

    x [items, dim], y [items]: what it learns from. Features are brought to mean 0 and deviation 1.
    """
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
    x, asked = ((torch.cat([(v - mean) / deviation, v.new_ones(len(v), 1)], 1)).double() for v in (x, asked))
    targets = torch.nn.functional.one_hot(y).double()
    weights = torch.linalg.solve(x.T @ x + strength * torch.eye(x.shape[1], dtype=x.dtype), x.T @ targets)
    return (asked @ weights).argmax(1)


def accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Share of the test items whose class ``ridge`` finds; pairs of features [items, dim] and classes [items]."""
    return float((ridge(*train, test[0]) == test[1]).float().mean())


@torch.inference_mode()
def heard(module: UsatTraining, corpus: PairedSpeech, part: str) -> dict[str, Tensor]:
    """What a model makes of the utterances of a part, a row each.

    "z", "content": means and deviations over time. "speaker": numbers. "first", "second", "other": vectors of two
    slices of a reference and of one of another utterance. "voice": of whole references. "mel", "kl": losses.
    """
    module.eval()
    rows: dict[str, list[Tensor]] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for batch in corpus.whole_dataloader(part):
            lengths, net = batch["mel_lengths"], module.net
            mask = length_mask(lengths, int(lengths.max()))
            mean, logs = net.encode(linear(batch["wave"], net.spec), mask)
            voice, slices = module.vectors(batch, mean)
            taught = net.teach(mean, logs, lengths, batch["ids"], batch["text_lengths"], voice)
            z = (mean + torch.randn_like(mean) * logs.exp()).masked_fill(~mask[:, None], 0.0)
            drawn = net.teach(z, logs, lengths, batch["ids"], batch["text_lengths"], voice)
            found = {
                "z": moments(mean, mask), "content": moments(taught.content, mask), "speaker": batch["speaker"],
                "voice": voice, **dict(zip(("first", "second", "other"), slices, strict=True)),
                "mel": module.sound(z, batch)["mel"].expand(len(z)), "kl": drawn.losses["kl"].expand(len(z)),
            }  # fmt: skip
            for name, value in found.items():
                rows.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in rows.items()}


def moments(x: Tensor, mask: Tensor) -> Tensor:
    """Means and deviations over time of x [batch, channels, time] -> [batch, 2 channels]."""
    inside = mask[:, None].to(x)
    count = inside.sum(2)
    mean = (x * inside).sum(2) / count
    return torch.cat([mean, (((x - mean[..., None]) * inside).square().sum(2) / count).sqrt()], 1)


def pairs(found: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Features of pairs of vectors, of one utterance (1) and of two of one speaker (0), and these classes."""
    a, b = torch.cat([found["first"], found["other"]]), found["second"].repeat(2, 1)
    classes = torch.arange(2, device=a.device).flip(0).repeat_interleave(len(found["first"]))
    return torch.cat([(a - b).abs(), a * b], 1), classes


# A word that adaptation never reads


def common_word(clips: list[Clip], tested: list[Clip], least: int = 3) -> str:
    """The word of so many phonemes or more, as phonemes, that most clips have and some of the tested ones too.

    Raises UserError where there is none.
    """
    counts, others = (Counter(w for clip in part for w in set(_words(clip))) for part in (clips, tested))
    known = [word for word in counts if others[word] and len(re.sub("[ˈˌː]", "", word)) >= least]
    if not known:
        raise UserError("the sentences share no word with those that are held out; give more of them")
    return max(sorted(known), key=lambda word: counts[word])


def _words(clip: Clip) -> list[str]:
    return re.findall(r'[^\s;:,.!?…"()—]+', clip.phonemes or "")


def place(word: str) -> re.Pattern[str]:
    """Where a word stands alone in phonemes with spaces around them."""
    return re.compile(rf'(?<=\s){re.escape(word)}(?=[\s;:,.!?…"()—])')


def without(clip: Clip, word: str) -> Clip:
    """The clip whose transcript omits a word that is spoken."""
    said = " ".join(place(word).sub("", f" {clip.phonemes} ").split())
    return replace(clip, phonemes=said)


@torch.inference_mode()
def word_cost(module: Adaptation, corpus: PairedSpeech, word: str) -> float:
    """-log p of the content of frames that held-out utterances spend on a word, in nats a frame.

    The flow keeps volumes, so that the figures of differently tuned models can be compared.
    """
    module.eval()
    net, total, count = module.net, 0.0, 0
    for batch in corpus.whole_dataloader("test"):
        lengths = batch["mel_lengths"]
        mask = length_mask(lengths, int(lengths.max()))
        mean, logs = net.encode(linear(batch["wave"], net.spec), mask)
        voice = net.voices.expand(len(mean), -1)
        taught = net.teach(mean, logs, lengths, batch["ids"], batch["text_lengths"], voice)
        path = path_of(taught.durations, mean.shape[2]) & mask[:, None]
        inside = torch.zeros_like(batch["ids"], dtype=torch.bool)
        for row, ids in zip(inside, batch["ids"].tolist(), strict=True):
            for found in place(word).finditer(to_phonemes(ids)):
                row[found.start() : found.end()] = True
        path = path & inside[:, :, None]
        scores = likelihood(taught.content, net.read(batch["ids"], batch["text_lengths"]))
        total, count = total - float(scores[path].sum()), count + int(path.sum())
    if not count:
        raise UserError(f"no held-out utterance has the word {word}; choose another")
    return total / count
