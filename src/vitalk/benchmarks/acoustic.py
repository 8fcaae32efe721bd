"""Every acoustic system on one corpus: trained for the same time, heard through one vocoder, judged in one run."""

import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from vitalk.errors import UserError
from vitalk.files import write_whole
from vitalk.measurement import machine
from vitalk.memory import peak_memory
from vitalk.recipes import load_recipe
from vitalk.speech.corpus import Clip, open_corpus, split
from vitalk.speech.judge.need import need
from vitalk.speech.judge.recordings import spread
from vitalk.speech.judge.report import Report
from vitalk.speech.judge.robustness import hard_sentences, robustness
from vitalk.speech.judge.voices import LEVEL, evaluate_voices

VITALK = [sys.executable, "-c", "from vitalk.cli import main; main()"]
TIMED = (6, 60)  # steps of the two short runs whose difference tells what a step takes
FRAMES = 2_000  # of a batch: in minutes on a processor, many small steps teach far more than the presets' larger ones
SPOKEN = "The quick brown fox jumps over the lazy dog."
NOTE = (
    "Each system trained for {minutes:g} minutes, all its stages together, with as many steps of its preset as fit "
    "(batches of {frames:,} frames), on the speaker {speaker} of {corpus} ({clips} utterances), and heard through "
    "{vocoder}. WER (Whisper base, its own normaliser, all words), speaker similarity (Resemblyzer, to {speaker}'s own "
    "recordings) and DNSMOS (at -23 dB) of {sentences} held-out sentences; recording: the corpus's own, which are the "
    "bound. Repeated and skipped: words of {hard} sentences that are hard on attention, and the share of these with "
    "any. Parameters: of the acoustic model as it speaks. Real-time factor: text to waveform, the vocoder included. "
    "MB: peak of a process that says one sentence, torch included. Train minutes: what the steps took, which were "
    "chosen by two short runs; more where other work slowed them down."
)


@dataclass(frozen=True)
class Plan:
    """How a system is trained here: the presets of its recipe one after the other, each for its share of the time.

    starts: model arguments that name a step, and the share of the steps at which it lies. aligned: it needs durations.
    """

    presets: tuple[str, ...] = ("cpu",)
    starts: tuple[tuple[str, float], ...] = ()
    aligned: bool = True


PLANS = {
    "fastspeech2": Plan(),
    "transformer-tts": Plan(aligned=False),
    "fastspeech": Plan(("aligned-cpu",)),
    "adaspeech": Plan(starts=(("predictor_start", 0.6),)),
    "portaspeech": Plan(("cpu", "post-cpu"), starts=(("kl_start", 0.06),)),
    "delightfultts": Plan(),
    "usat": Plan(starts=(("ramp", 1.0),)),
}


@dataclass(frozen=True)
class Setting:
    """What is the same for all: corpus and speaker, aligner and vocoder, minutes, and the folder of the runs."""

    corpus: Path
    speaker: str
    aligner: Path
    vocoder: Path
    minutes: float
    folder: Path

    def run(self, slug: str) -> Path:
        """The folder of a system's last stage."""
        return self.folder / f"{slug}-{PLANS[slug].presets[-1]}"


def recipe(slug: str, stage: int, steps: int, setting: Setting) -> dict[str, Any]:
    """The configuration of one stage of a system, with so many steps."""
    plan = PLANS[slug]
    _, config = load_recipe(slug, plan.presets[stage])
    model, data, trainer = (config[part] for part in ("model", "data", "trainer"))
    data["init_args"] |= {"path": str(setting.corpus), "speakers": [setting.speaker], "mel": "vitalk"}
    data["init_args"]["batch_frames"] = FRAMES
    if plan.aligned:
        data["init_args"]["aligner"] = str(setting.aligner)
    arguments = model["init_args"]
    arguments["mel"] = "vitalk"
    arguments["warmup_steps"] = min(arguments["warmup_steps"], max(steps // 10, 1))
    arguments |= {name: round(share * steps) for name, share in plan.starts if name in arguments}
    if "start" in arguments:
        arguments["start"] = str(setting.folder / f"{slug}-{plan.presets[stage - 1]}" / "model.safetensors")
    trainer["max_steps"] = steps
    for callback in trainer.get("callbacks", []):
        if callback["class_path"].endswith("EMAWeightAveraging"):
            callback["init_args"]["decay"] = min(0.999, max(0.0, 1 - 20 / steps))  # over a twentieth of the run
    return config


def train(slug: str, setting: Setting, console: Console) -> dict[str, Any]:
    """Train all stages of a system; {"steps", "train_minutes"}. What is done is kept and not done again."""
    kept = setting.run(slug) / "told.json"
    if kept.is_file() and (told := json.loads(kept.read_text())).get("minutes") == setting.minutes:
        return told
    told = {"minutes": setting.minutes, "steps": 0, "train_minutes": 0.0}
    share = setting.minutes / len(PLANS[slug].presets)
    for stage, preset in enumerate(PLANS[slug].presets):
        console.print(f"{slug} {preset}: {share:g} minutes")
        steps = affordable(
            *(_fit(slug, stage, steps, setting, setting.folder / f".{slug}-{steps}") for steps in TIMED), 60 * share
        )
        told["train_minutes"] += _fit(slug, stage, steps, setting, setting.folder / f"{slug}-{preset}") / 60
        told["steps"] += steps
    write_whole(kept, json.dumps(told))
    return told


def affordable(short: float, long: float, seconds: float) -> int:
    """How many steps fit into so many seconds, by what two runs of ``TIMED`` steps took.

    Raises UserError where the longer one did not take longer, as happens beside other work.
    """
    step = (long - short) / (TIMED[1] - TIMED[0])
    if step < 0.1 * long / TIMED[1]:
        raise UserError(
            f"{TIMED[0]} steps took {short:.0f} s and {TIMED[1]} steps {long:.0f} s: something else is running; stop "
            "it and start again, what is trained is kept"
        )
    return max(math.floor((seconds - short) / step), TIMED[1])


def _fit(slug: str, stage: int, steps: int, setting: Setting, folder: Path) -> float:
    """Seconds of a training run; a trial's folder, whose name begins with a dot, is removed."""
    import shutil

    import yaml

    config = {"presets": {"bench": recipe(slug, stage, steps, setting)}}
    file = write_whole(setting.folder / f"{slug}.yaml", yaml.safe_dump(config, sort_keys=False))
    shutil.rmtree(folder, ignore_errors=True)
    start = time.monotonic()
    command = [*VITALK, "train", str(file), "--preset", "bench", "-o", str(folder), "--interval", "1000000"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason told"])[-1]
        raise UserError(f"the training of {slug} failed: {reason}")
    if folder.name.startswith("."):
        shutil.rmtree(folder)
    return time.monotonic() - start


def compare(setting: Setting, slugs: list[str], sentences: int) -> dict[str, Any]:
    """A record with a row a system, after one of the recordings themselves.

    Raises UserError for trainings that fail and files that are missing.
    """
    console = Console(stderr=True)
    for name, path in (("aligner", setting.aligner), ("vocoder", setting.vocoder)):
        if not (path / "model.safetensors" if path.is_dir() else path).is_file():
            raise UserError(f"there is no {name} at {path}; train one: vitalk train {name} --preset cpu -o {path}")
    for judge in ("faster_whisper", "jiwer", "resemblyzer"):  # told now, and not when all is trained
        need(judge)
    clips = open_corpus(setting.corpus, [setting.speaker])
    learnt, held_out = split(clips, 0.02)
    held_out = spread(held_out, sentences)
    trained = {slug: train(slug, setting, console) for slug in slugs}
    report = _judged(slugs, held_out, spread(learnt, 20), setting)
    rows = [{"system": "recording"} | _heard(report["recording"])]
    for slug in slugs:
        cost = _cost(slug, setting, "wer_pooled" not in report[slug])
        rows.append({"system": slug} | _heard(report[slug]) | cost | trained[slug])
        rows[-1].pop("minutes")
    note = NOTE.format(
        minutes=setting.minutes, frames=FRAMES, speaker=setting.speaker, corpus=setting.corpus.name, clips=len(clips),
        vocoder=setting.vocoder.parent.name, sentences=len(held_out), hard=len(hard_sentences()),
    )  # fmt: skip
    return {"machine": machine(), "note": note, "rows": rows}


def _judged(slugs: list[str], clips: list[Clip], learnt: list[Clip], setting: Setting) -> dict[str, dict[str, Any]]:
    """Means of what the judges heard, of the recordings and of each system; learnt: recordings of the speaker."""
    import tempfile

    from vitalk.speech.judge.evaluate import evaluate
    from vitalk.speech.judge.recogniser import Recogniser
    from vitalk.trained import open_voice

    opened = partial(open_voice, vocoder=setting.vocoder)
    with tempfile.TemporaryDirectory() as folder:
        own, model = Path(folder) / "own", Path(folder) / "model"
        for target, some in ((own, clips), (model, learnt)):
            (target / "wavs").mkdir(parents=True)
            for clip in some:
                clip.load().levelled(LEVEL).save(target / "wavs" / f"{clip.id}.wav")
        lines = [json.dumps({"id": clip.id, "text": clip.text}) for clip in clips]
        texts = write_whole(own / "metadata.jsonl", "\n".join(lines))
        recogniser = Recogniser()
        how = {"speaker": model / "wavs", "normaliser": "whisper", "recogniser": recogniser}
        found = {"recording": _means(evaluate(own, **how))}
        for slug in slugs:
            said = setting.folder / f"{slug}-said"
            try:
                report, _ = evaluate_voices([setting.run(slug)], texts, opened=opened, output=said, **how)
                found[slug] = _means(report)
                found[slug]["hard"] = robustness(opened(setting.run(slug)), recogniser)
            except UserError as error:  # a model that has learnt too little to make a sound is a finding, too
                found.setdefault(slug, {})["heard"] = str(error)
        return found


def _means(report: Report) -> dict[str, Any]:
    return {name: {"mean": value.mean, "low": value.low, "high": value.high} for name, value in report.means.items()}


def _heard(means: dict[str, Any]) -> dict[str, Any]:
    if "wer_pooled" not in means:
        return {"wer": None, "heard": means["heard"]}
    wer = means["wer_pooled"]
    told = {"wer": wer["mean"], "wer_interval": f"{100 * wer['low']:.1f} to {100 * wer['high']:.1f}"}
    for key, name in (("similarity", "similarity"), ("dnsmos", "ovrl"), ("rtf", "rtf")):
        if name in means:  # no judge says anything of the voice of silence
            told[key] = means[name]["mean"]
    if "heard" in means:  # why the hard sentences are missing
        told["heard"] = means["heard"]
    if "hard" in means:
        hard = means["hard"]
        told |= {"repeated": hard.repeats, "skipped": hard.skips, "hard_errors": hard.error_rate}
    return told


def _cost(slug: str, setting: Setting, silent: bool) -> dict[str, Any]:
    from importlib import import_module

    from vitalk.catalog import find

    model, _ = import_module(f"{find(slug).package}.training").load_for_voice(setting.run(slug) / "model.safetensors")
    out = setting.folder / f"{slug}.wav"
    command = [*VITALK, "speak", SPOKEN, "-o", str(out)]
    command += ["--voice", str(setting.run(slug)), "--vocoder", str(setting.vocoder)]
    count = {"parameters": sum(p.numel() for p in model.parameters())}
    return count if silent else count | {"peak_bytes": peak_memory(command)}
