"""FastSpeech's claims: mels many times faster than its teacher's, the more the longer; tempo without other pitch."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, seed_everything

from vitalk.experiments import Budget, budget, short_run
from vitalk.measurement import Measurement, Verdict
from vitalk.speech.audio import Audio
from vitalk.speech.experiments import BATCH_FRAMES, align, mel_error, some
from vitalk.speech.features import Speech
from vitalk.speech.mel import mel_spec
from vitalk.speech.pitch import f0
from vitalk.speech.vocoder.generators import create
from vitalk.speech.vocoder.griffin_lim import griffin_lim
from vitalk.systems.transformer_tts.training import TransformerTTSTraining
from vitalk.systems.transformer_tts.variants import transformer_tts_teacher

from .model import fastspeech
from .teaching import TaughtSpeech
from .training import FastSpeechTraining

PUBLISHED = "269.40 times faster in making mels, 38.30 times with WaveGlow, on a V100 at about 560 frames"
LENGTHS, PER_SYMBOL = (100, 300, 600), 6  # frames of the timed utterances, and of each of their symbols
SPEEDS = (0.5, 0.75, 1.25, 1.5)
BLOCKS = {"depth": 2, "heads": 2, "hidden": 384, "kernels": (5, 1)}
STUDENT = {"dim": 128, "encoder": BLOCKS, "decoder": BLOCKS}
FLAT = {**BLOCKS, "kernels": (1, 1)}
TEACHER = {"dim": 128, "encoder": FLAT, "decoder": FLAT, "prenet": (64, 64), "postnet": {"hidden": 96},
           "frames_per_step": 4}  # fmt: skip
SPEAKER, SEEDS, PILOT, SAID = "jm_kumo", 2, 6, 8
ARMS = ("aligned", "taught", "real")  # durations of an aligner; the teacher's with its mels, with the recordings'

Row = dict[str, float]


def measure(minutes: float, data: Path) -> Measurement:
    """Speeds at the paper's sizes with random weights, and small students trained with and without distillation.

    minutes: the budget. data: the data root, whose kokoro_en gives one voice.
    """
    with budget("FastSpeech", minutes) as clock, TemporaryDirectory() as folder:
        clock.tick("speeds")
        speeds = compare_speeds(clock.tick)
        clock.tick("features")
        options: dict[str, Any] = {"speakers": [SPEAKER], "batch_frames": BATCH_FRAMES, "workers": 0, "held_out": 0.08}
        options |= {"path": str(data / "speech" / "kokoro_en"), "limit": int(min(2_300, max(40, 60 * minutes)))}
        corpora, focus = prepare(options, Path(folder), clock)
        trained, tempo, steps = students(corpora, clock)
    used = (
        f"{options['limit']} utterances of one synthetic speaker (kokoro_en), {steps} steps of {BATCH_FRAMES:,} frames"
    )
    return report(speeds, tempo, trained, focus, used)


@torch.inference_mode()
def compare_speeds(tick: Callable[[], object] = lambda: None) -> list[Row]:
    """Seconds by length for one utterance, random weights: mel of the teacher, of the student, and the vocoder."""
    teacher, student = transformer_tts_teacher(51).eval(), fastspeech(51).eval()
    teacher.stop.bias.fill_(-1e9)  # it speaks as long as it may
    vocoder, rows = create("vocos", mel_spec("vitalk")).eval(), []
    for frames in LENGTHS:
        ids = torch.randint(1, 51, (1, max(frames // PER_SYMBOL, 1)))
        durations = torch.full_like(ids, PER_SYMBOL)
        durations[0, -1] += frames - int(durations.sum())
        mel = student(ids, None, durations).mel
        rows.append({
            "frames": frames,
            "teacher": timed(lambda ids=ids, frames=frames: teacher.generate(ids, most=frames), 1),
            "student": timed(lambda ids=ids, durations=durations: student(ids, None, durations), 5),
            "vocoder": timed(lambda mel=mel: vocoder(mel), 5),
        })  # fmt: skip
        tick()
    return rows


def timed(run: Callable[[], object], times: int) -> float:
    """The median of so many seconds."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def ratio(row: Row, whole: bool = False) -> float:
    """How many times faster the student is; whole: with the vocoder."""
    more = row["vocoder"] if whole else 0.0
    return (row["teacher"] + more) / (row["student"] + more)


def prepare(options: dict[str, Any], folder: Path, clock: Budget) -> tuple[dict[str, Speech], float]:
    """({arm: its data}, the teacher's mean focus rate): an aligner and a teacher are trained for it, in ``folder``."""
    corpus = Speech(**options, cache=str(folder / "features"))
    corpus.setup()
    whole = clock.tick("aligning")
    aligner = align(corpus, 0.12 * whole, clock.tick)
    clock.tick("the teacher")
    teacher = TransformerTTSTraining(
        corpus.n_symbols, variant="small", model_args=TEACHER, distance="l1", guided=2, weights={"guided": 5.0},
        schedule="noam", lr=2e-3, warmup_steps=200,
    )  # fmt: skip
    teacher.build(*corpus.spreads(100))
    short_run(teacher, corpus, None, clock.tick, 0.33 * whole)
    teacher.save_weights(folder / "teacher.safetensors", corpus)
    clock.tick("lessons")
    told = {**options, "cache": str(folder / "features"), "teacher": str(folder / "teacher.safetensors"), "focus": 0.0}
    corpora = {"taught": TaughtSpeech(**told), "real": TaughtSpeech(**told, mels="real")}
    for taught in corpora.values():
        taught.setup()
    corpus.use(aligner)
    lessons = corpora["taught"].lessons
    rates = [lessons[corpus.cache.name(clip)].focus for clip in corpora["taught"].test]
    return {"aligned": corpus, **corpora}, statistics.mean(rates)


def students(corpora: dict[str, Speech], clock: Budget) -> tuple[dict[str, list[float]], list[Row], int]:
    """({arm: held-out mel L1 to real mels by seed}, ``tempo`` of the first aligned one, the steps of each)."""
    pace = short_run(make(corpora["aligned"], PILOT), corpora["aligned"], PILOT, clock.tick)
    steps = max(PILOT, int(0.7 * clock.tick() / (SEEDS * len(ARMS) * pace)))
    found: dict[str, list[float]] = {name: [] for name in ARMS}
    control: list[Row] = []
    for seed in range(SEEDS):
        before = clock.tick()
        for name in ARMS:
            clock.tick(f"{name}, seed {seed}")
            seed_everything(seed, verbose=False)
            model = make(corpora[name], steps)
            short_run(model, corpora[name], steps, clock.tick)
            # Judged by recordings, whatever it was taught.
            found[name].append(mel_error(model, corpora["real" if name == "taught" else name]))
            control = control or tempo(model, corpora[name])
        left = clock.tick()
        if left < 0.9 * (before - left):
            break
    return found, control, steps


def make(corpus: Speech, steps: int) -> FastSpeechTraining:
    """A student that is to be trained for so many steps."""
    model = FastSpeechTraining(
        corpus.n_symbols, variant="small", model_args=STUDENT, mel=corpus.hparams.mel, schedule="cosine", lr=2e-3,
        warmup_steps=max(steps // 10, 1),
    )  # fmt: skip
    model.build(*corpus.spreads(100))
    return model


@torch.inference_mode()
def tempo(model: LightningModule, corpus: Speech) -> list[Row]:
    """What other speeds do to held-out sentences, by Griffin-Lim: length times speed and mean F0, relative to speed 1.

    Sentences without voice at any of the speeds are left out; f0 is nan where none is left.
    """
    model.eval()
    spec, kept = mel_spec(corpus.hparams.mel), corpus.hparams
    said: list[list[tuple[int, float]]] = []
    for row in some(corpus, most=SAID):
        ids, line = row["ids"][:1, : row["text_lengths"][0]], []
        for speed in (1.0, *SPEEDS):
            mel = model.net(ids, speed=speed).mel
            wave = griffin_lim(mel.float(), spec)[0].numpy()
            hertz = f0(Audio(np.clip(wave, -1, 1), spec.rate), spec.hop, spec.center, kept.fmin, kept.fmax)
            line.append((mel.shape[2], float(hertz[hertz > 0].mean()) if hertz.any() else float("nan")))
        said.append(line)
    model.train()
    figures = np.array(said)  # [sentences, speeds, 2]
    with np.errstate(all="ignore"):
        relative = figures[:, 1:] / figures[:, :1]
    rows = []
    for i, speed in enumerate(SPEEDS):
        hertz = relative[:, i, 1][np.isfinite(relative[:, i, 1])]
        rows.append({"speed": speed, "length": float(relative[:, i, 0].mean() * speed),
                     "f0": float(np.exp(np.log(hertz).mean())) if len(hertz) else float("nan")})  # fmt: skip
    return rows


def judge(speeds: list[Row], control: list[Row]) -> Verdict:
    """The verdict, on what does not hang on the quality of a short training.

    "reproduced" where the student is faster by a factor that grows with the length and is at least a tenth of the
    frames at the longest, and all speeds scale the length and leave the mean F0 as it is, both within 5 %.
    "direction only" where the student is faster at every length.
    """
    ratios = [ratio(row) for row in speeds]
    grows = ratios == sorted(ratios) and ratios[-1] >= speeds[-1]["frames"] / 10
    steady = all(abs(row[name] - 1) <= 0.05 for row in control for name in ("length", "f0"))
    if grows and control and steady:
        return "reproduced"
    return "direction only" if min(ratios) > 1 else "not reproduced"


def report(
    speeds: list[Row], control: list[Row], trained: dict[str, list[float]], focus: float, data: str
) -> Measurement:
    """The measurement in words and figures. focus: the teacher's mean focus rate, of which durations hang."""
    mel = {name: statistics.mean(values) for name, values in trained.items()}
    said = ", ".join(f"{ratio(row):.0f}" for row in speeds)
    whole = ", ".join(f"{ratio(row, whole=True):.0f}" for row in speeds)
    frames = ", ".join(f"{row['frames']:.0f}" for row in speeds)
    longest = speeds[-1]
    off = {name: max((abs(row[name] - 1) for row in control), default=float("nan")) for name in ("f0", "length")}
    return Measurement(
        claim="All frames at once are made many times faster than one after the other, the more so the longer the "
        "sentence, and durations control the tempo without touching the pitch",
        published=f"{PUBLISHED}; CMOS -0.325 without the teacher's mels",
        measured=f"{said} times faster at {frames} frames, {whole} times with a Vocos vocoder; tempo 0.5 to 1.5: F0 "
        f"off by {off['f0']:.1%} at most, length by {off['length']:.1%}; held-out mel L1 {mel['taught']:.3f} taught by "
        f"a teacher's mels, {mel['real']:.3f} by real ones, the teacher's focus rate being {focus:.2f}",
        baseline=f"the teacher, {longest['teacher']:.2f} s for {longest['frames']:.0f} frames; an aligner's durations "
        f"with real mels: mel L1 {mel['aligned']:.3f}",
        verdict=judge(speeds, control),
        data=f"{data}, {len(trained['taught'])} seeds; speeds at the paper's sizes with random weights",
        details={
            "speeds": [{name: round(value, 5) for name, value in row.items()} for row in speeds],
            "tempo": [{name: round(value, 4) for name, value in row.items()} for row in control],
            "held_out": {name: [round(value, 4) for value in values] for name, values in trained.items()},
            "focus": round(focus, 4),
        },
    )
