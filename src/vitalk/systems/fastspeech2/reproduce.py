"""FastSpeech 2's claims: pitch and energy as inputs ease the one-to-many mapping, and no teacher is to be trained."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import seed_everything
from torch import Tensor

from vitalk.catalog import find
from vitalk.experiments import Budget, budget, short_run
from vitalk.measurement import Measurement, Verdict
from vitalk.speech.experiments import BATCH_FRAMES, align, keep_durations, mel_error, some
from vitalk.speech.features import Speech
from vitalk.speech.pitch import average_by_duration

from .model import Targets
from .training import FastSpeech2Training

ARMS = {"full": (), "no energy": ("energy",), "no pitch": ("pitch",), "neither": ("pitch", "energy")}
PUBLISHED = {"no energy": -0.040, "no pitch": -0.245, "neither": -0.370}  # CMOS against the full model
PUBLISHED_GAP = "training and validation mel loss differ by 0.037 with them, by 0.119 in FastSpeech without"
SIZE = {"dim": 128, "encoder": {"depth": 2, "hidden": 256, "kernels": (5, 1)},
        "decoder": {"depth": 2, "hidden": 256, "kernels": (5, 1)}}  # fmt: skip
SPEAKER, SEEDS, PILOT = "jm_kumo", 3, 6
PUBLISHED_TIME = "trains in 17.02 h, FastSpeech with its teacher in 53.12 h (unconfirmed digits), 3.1 times as long"
RIVALS = {"teacher": ("transformer-tts", "TransformerTTS", "fs2"), "student": ("fastspeech", "FastSpeech", "rerun")}
TIMED = 8  # steps of each of the models whose training is timed


class Without(FastSpeech2Training):
    """Training in which the decoder is told the corpus' mean instead of the quantities named in ``left_out``."""

    left_out: tuple[str, ...] = ()

    def targets(self, batch: dict[str, Tensor]) -> Targets:
        """The targets, of which those left out are constant."""
        found = super().targets(batch)
        for name in self.left_out:
            scale = getattr(self.net, name).scale
            mean = scale.mean.exp() if scale.log else scale.mean
            found = replace(found, **{name: torch.full_like(getattr(found, name), float(mean))})
        return found


def measure(minutes: float, data: Path) -> Measurement:
    """Held-out mel L1 with and without pitch and energy as inputs, at equal steps, on one voice of kokoro_en.

    minutes: the budget; a sixth trains the aligner that gives the durations. data: the data root.
    """
    with budget("FastSpeech 2", minutes) as time, TemporaryDirectory() as folder:
        time.tick("features")
        clips = int(min(2_300, max(40, 60 * minutes)))
        options: dict[str, Any] = {"speakers": [SPEAKER], "limit": clips, "batch_frames": BATCH_FRAMES, "workers": 0}
        options |= {"path": str(data / "speech" / "kokoro_en"), "held_out": 0.08}
        corpus = Speech(**options)
        corpus.setup()
        time.tick("aligning")
        aligner = align(corpus, 10 * minutes, time.tick)
        keep_durations(aligner, folder, corpus)
        time.tick("steps of FastSpeech 2, FastSpeech and its teacher")
        paces = step_times(corpus, time.tick)
        gaps, steps, predicted = ablate(corpus, time)
    data_used = f"{clips} utterances of one synthetic speaker (kokoro_en), {steps} steps of {BATCH_FRAMES:,} frames"
    return report(gaps, data_used, predicted, paces)


def step_times(corpus: Speech, tick: Callable[[], object] = lambda: None) -> dict[str, float]:
    """Median seconds of a training step on the same batches: "own" at the paper's size, and its rivals at theirs.

    FastSpeech's pipeline is a teacher's training and then its student's. Left out are what comes between (the
    teacher says the corpus once) and FastSpeech 2's aligner.
    """
    kinds = {"own": (FastSpeech2Training, "paper")}
    for name, (slug, kind, variant) in RIVALS.items():  # peers that are measured; nothing here is built on them
        kinds[name] = getattr(import_module(f"{find(slug).package}.training"), f"{kind}Training"), variant
    found = {}
    for name, (kind, variant) in kinds.items():
        seed_everything(0, verbose=False)
        model = kind(corpus.n_symbols, variant=variant, mel=corpus.hparams.mel)
        model.build(*corpus.spreads(100))
        found[name] = short_run(model, corpus, TIMED, tick)
    return found


def pipeline(paces: dict[str, float]) -> float:
    """How many times as long teacher and student train as FastSpeech 2, at equal steps."""
    return (paces["teacher"] + paces["student"]) / paces["own"]


def ablate(
    corpus: Speech, time: Budget
) -> tuple[dict[str, list[tuple[float, float]]], int, dict[str, dict[str, float]]]:
    """({arm: (training, held-out) mel L1 by seed}, the steps that each was trained for, ``predictions`` of the first).

    Another seed begins only where there is time for all of its arms.
    """
    seed_everything(0, verbose=False)
    pace = short_run(make("full", corpus, PILOT), corpus, PILOT, time.tick)
    steps = max(PILOT, int(0.8 * time.tick() / (SEEDS * len(ARMS) * pace)))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
    predicted: dict[str, dict[str, float]] = {}
    for seed in range(SEEDS):
        before = time.tick()
        for name in ARMS:
            time.tick(f"{name}, seed {seed}")
            seed_everything(seed, verbose=False)
            model = make(name, corpus, steps)
            short_run(model, corpus, steps, time.tick)
            found[name].append(tuple(mel_error(model, corpus, part) for part in ("train", "test")))
            predicted = predicted or predictions(model, corpus)
        left = time.tick()
        if left < 0.9 * (before - left):
            break
    return found, steps, predicted


def make(arm: str, corpus: Speech, steps: int) -> FastSpeech2Training:
    """The model of an arm; all arms have the same parameters."""
    model = Without(
        corpus.n_symbols, variant="small", model_args=SIZE, mel=corpus.hparams.mel, schedule="cosine",
        warmup_steps=max(steps // 10, 1), lr=2e-3,
    )  # fmt: skip
    model.left_out = ARMS[arm]
    model.build(*corpus.spreads(100))
    return model


@torch.inference_mode()
def predictions(model: FastSpeech2Training, corpus: Speech) -> dict[str, dict[str, float]]:
    """Errors of what the model predicts of held-out symbols, "model", and of a mean in its place, "mean".

    duration: MAE in frames, against each phoneme's mean in training. energy: MAE, against the corpus' mean. pitch:
    RMSE in Hz of symbols with voice, against the utterance's own mean.
    """
    model.eval()
    usual, off = usual_durations(corpus), []
    for batch in some(corpus, "test"):
        durations, targets = batch["durations"], model.targets(batch)
        out = model.net(batch["ids"], batch["text_lengths"], durations)
        there, f0 = durations > 0, batch["f0"]
        voiced = average_by_duration(f0, durations, f0 > 0) > 0
        mean = (targets.pitch * voiced).sum(1, keepdim=True) / voiced.sum(1, keepdim=True).clamp(min=1)
        pairs = {
            "duration": (out.log_durations.expm1() - durations, usual[batch["ids"]] - durations, there),
            "energy": (out.energy - targets.energy, model.net.energy.scale.mean - targets.energy, there),
            "pitch": (out.pitch - targets.pitch, mean - targets.pitch, voiced),
        }
        off.append({name: torch.stack([a[kept], b[kept]]).abs() for name, (a, b, kept) in pairs.items()})
    model.train()
    whole = {name: torch.cat([row[name] for row in off], 1) for name in off[0]}
    sizes = {name: v.square().mean(1).sqrt() if name == "pitch" else v.mean(1) for name, v in whole.items()}
    return {name: dict(zip(("model", "mean"), size.tolist(), strict=True)) for name, size in sizes.items()}


def usual_durations(corpus: Speech) -> Tensor:
    """Mean frames of each symbol in the training part, [symbols]; that of all of them for those that it has not."""
    total, count = torch.zeros(2, corpus.n_symbols)
    for batch in some(corpus, "train", 10**9):
        known = batch["durations"] > 0
        ids = batch["ids"][known]
        total.index_add_(0, ids, batch["durations"][known].float())
        count.index_add_(0, ids, torch.ones(len(ids)))
    return torch.where(count > 0, total / count.clamp(min=1), total.sum() / count.sum())


def judge(gaps: dict[str, list[tuple[float, float]]], longer: float) -> Verdict:
    """The verdict on held-out mel L1, the published order being that of the listeners' preference.

    "reproduced" where full < no energy < no pitch < neither in the mean, and the first two steps that the paper
    calls large (pitch, both) exceed two standard errors over the seeds, and FastSpeech's pipeline takes at least twice
    as long (``longer``); "direction only" where "neither" is worse than the full model by more than two standard
    errors.
    """
    test = {name: [row[1] for row in rows] for name, rows in gaps.items()}
    means = [statistics.mean(test[name]) for name in ARMS]

    def clear(name: str) -> bool:
        rises = [a - b for a, b in zip(test[name], test["full"], strict=True)]
        error = statistics.stdev(rises) / len(rises) ** 0.5 if len(rises) > 1 else float("inf")
        return statistics.mean(rises) > 2 * error

    if means == sorted(means) and clear("no pitch") and clear("neither") and longer >= 2:
        return "reproduced"
    return "direction only" if clear("neither") else "not reproduced"


def report(
    gaps: dict[str, list[tuple[float, float]]],
    data: str,
    predicted: dict[str, dict[str, float]],
    paces: dict[str, float],
) -> Measurement:
    """The measurement in words and figures. predicted: see ``predictions``. paces: see ``step_times``."""
    mean = {name: [statistics.mean(column) for column in zip(*rows, strict=True)] for name, rows in gaps.items()}
    rise = {name: test - train for name, (train, test) in mean.items()}
    return Measurement(
        claim="Pitch and energy as inputs ease the mapping from text to many possible mels: without them quality "
        "falls, most without both, least without energy; without a teacher, training takes a third of the time",
        published="CMOS against the full model: "
        + ", ".join(f"{name} {cmos:+.3f}" for name, cmos in PUBLISHED.items())
        + f"; {PUBLISHED_GAP}; {PUBLISHED_TIME}",
        measured="held-out mel L1, teacher-forced: "
        + ", ".join(f"{name} {mean[name][1]:.3f}" for name in PUBLISHED)
        + f"; above that in training by {rise['full']:.3f} with both, by {rise['neither']:.3f} with neither; "
        f"steps of FastSpeech's teacher and student take {pipeline(paces):.1f} times as long together",
        baseline=f"full model {mean['full'][1]:.3f} held out, {mean['full'][0]:.3f} in training; steps at the paper's "
        f"sizes: {paces['own']:.2f} s, teacher {paces['teacher']:.2f} s, student {paces['student']:.2f} s",
        verdict=judge(gaps, pipeline(paces)),
        data=f"{data}, {len(gaps['full'])} seeds",
        details={
            "step_seconds": {name: round(value, 3) for name, value in paces.items()},
            "held_out": {name: [round(row[1], 4) for row in rows] for name, rows in gaps.items()},
            "training": {name: [round(row[0], 4) for row in rows] for name, rows in gaps.items()},
            "predicted": {
                name: {who: round(error, 3) for who, error in pair.items()} for name, pair in predicted.items()
            },
        },
    )
