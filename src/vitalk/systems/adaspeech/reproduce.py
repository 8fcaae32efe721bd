"""AdaSpeech's claim that few stored numbers do for a new voice what tuning the whole decoder does, on held-out mels."""

import statistics
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning import seed_everything

from vitalk.errors import UserError
from vitalk.experiments import Budget, budget, short_run
from vitalk.measurement import Measurement, Verdict
from vitalk.speech.audio import Audio
from vitalk.speech.corpus import Clip
from vitalk.speech.experiments import BATCH_FRAMES, align, keep_durations
from vitalk.speech.features import Speech, sound
from vitalk.speech.mel import mel_spec
from vitalk.speech.vocoder.griffin_lim import griffin_lim

from .adaptation import Adaptation, Part, spoken_error, tuned
from .training import AdaSpeechTraining
from .voices import Adapter, fingerprint, fold, reference_of

SOURCES, NEW = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jm_kumo"), "jf_tebukuro"
ARMS: tuple[Part, ...] = ("embedding", "norm", "conditional", "decoder", "all")
# How a source model is built, and what of it is tuned. Without conditional norms the paper tunes the embedding alone.
ABLATIONS: dict[str, tuple[dict[str, Any], Part]] = {
    "no utterance level": ({"levels": ["phoneme"]}, "conditional"),
    "no phoneme level": ({"levels": ["utterance"]}, "conditional"),
    "no conditional norms": ({"conditional": False}, "embedding"),
}
PUBLISHED = (
    "MOS 3.45 / 3.39 / 3.55 (LJSpeech, VCTK, LibriTTS) for 1.184 M tuned and 4.9 K stored parameters, 3.44 / 3.35 / "
    "3.51 for the whole decoder's 14.1 M, 2.37 / 2.36 / 3.02 for the speaker's embedding alone; CMOS on VCTK without "
    "utterance level -0.12, without phoneme level -0.21, without conditional norms -0.14 (unconfirmed digits)"
)
SIZE = {"dim": 128, "encoder": {"depth": 2, "hidden": 256, "kernels": (5, 1)},
        "decoder": {"depth": 2, "hidden": 256, "kernels": (5, 1)}}  # fmt: skip
SENTENCES, TESTED, HEARD, FEWER, SEEDS, PILOT = 20, 40, 12, (1, 5, 10), 2, 4
CLOSE = 1.05  # times the decoder's error: the paper's "comparable"


def measure(minutes: float, data: Path) -> Measurement:
    """Held-out mel L1 of a fifth voice of kokoro_en after equal steps on 20 sentences, by what was tuned.

    The source models, the full one and the ablations, are trained for equal steps on the other four voices. minutes:
    the budget; a sixth trains the aligner, half of the rest the source models. data: the data root.
    """
    with budget("AdaSpeech", minutes) as time, TemporaryDirectory() as folder:
        time.tick("features")
        clips = int(min(190, max(12, 15 * minutes)))
        sources, new = corpora(data / "speech" / "kokoro_en", clips)
        time.tick("aligning")
        keep_durations(align(sources, 10 * minutes, time.tick), folder, sources, new)
        models, steps = train(sources, time)
        start = Adaptation.of(models["full"])
        start.net.references[0] = own_reference(models["full"], new)
        results = adapt_all(models, new, time)
        results["before"] = spoken_error(start, new)
        results["untouched"] = untouched(models["full"], results["modules"]["conditional"])
        time.tick("speaker similarity")
        results["likeness"] = likeness({"before": start, **results["modules"]}, sources, new)
        results["numbers"] = counts(models["full"])
    data_used = (
        f"{len(SOURCES)} source voices of kokoro_en with {clips} sentences each ({steps} steps of {BATCH_FRAMES:,} "
        f"frames), {SENTENCES} sentences of another ({results['steps']} steps), {len(new.test)} held out, "
        f"{SEEDS} seeds of the adaptation"
    )
    return report(results, data_used)


def corpora(path: Path, clips: int) -> tuple[Speech, Speech]:
    """(source voices with so many sentences each, the new voice with ``SENTENCES`` and a held-out part)."""
    options: dict[str, Any] = {"path": str(path), "batch_frames": BATCH_FRAMES, "workers": 0}
    sources = Speech(speakers=list(SOURCES), held_out=0.05, **options)
    sources.train, sources.test = first(sources.train, clips), first(sources.test, max(clips // 10, 1))
    new = Speech(speakers=[NEW], held_out=0.2, **options)
    new.train, new.test = new.train[:SENTENCES], new.test[:TESTED]
    for corpus in (sources, new):
        corpus.setup()
    return sources, new


def first(clips: list[Clip], each: int) -> list[Clip]:
    """The first so many clips of each speaker."""
    return [clip for name in SOURCES for clip in [c for c in clips if c.speaker == name][:each]]


def train(corpus: Speech, time: Budget) -> tuple[dict[str, AdaSpeechTraining], int]:
    """({"full" and the ablations: source model}, the steps that each was trained for)."""
    seed_everything(0, verbose=False)
    pace = short_run(make(corpus, PILOT, {}), corpus, PILOT, time.tick)
    steps = max(PILOT, int(0.5 * time.tick() / ((1 + len(ABLATIONS)) * pace)))
    models = {}
    for name, (options, _) in {"full": ({}, None), **ABLATIONS}.items():
        time.tick(f"source model, {name}")
        seed_everything(0, verbose=False)
        models[name] = make(corpus, steps, options)
        short_run(models[name], corpus, steps, time.tick)
        models[name].hear(corpus)
    return models, steps


def make(corpus: Speech, steps: int, options: dict[str, Any]) -> AdaSpeechTraining:
    """A source model for so many steps, three fifths of them without the phoneme predictor, as in the paper."""
    model = AdaSpeechTraining(
        corpus.n_symbols, corpus.n_speakers, variant="small", model_args={**SIZE, **options}, mel=corpus.hparams.mel,
        schedule="cosine", warmup_steps=max(steps // 10, 1), lr=2e-3, predictor_start=int(0.6 * steps),
    )  # fmt: skip
    model.build(*corpus.spreads(100))
    return model


def adapt_all(models: dict[str, AdaSpeechTraining], new: Speech, time: Budget) -> dict[str, Any]:
    """{"arms", "ablations": {name: held-out errors by seed}, "fewer": {sentences: error}, "steps", "modules"}.

    modules: the adapted full models of the first seed, by arm.
    """
    runs = (len(ARMS) + len(ABLATIONS)) * SEEDS + len(FEWER)
    before = time.tick("adaptation")
    module, pace = learn(models["full"], "all", new, PILOT, 0, time)
    spoken_error(module, new)
    around = before - time.tick() - PILOT * pace  # seconds of a run that are not its steps
    steps = max(PILOT, int((0.85 * time.tick() / runs - around) / pace))
    found: dict[str, Any] = {"arms": {}, "ablations": {}, "fewer": {}, "steps": steps, "modules": {}}
    for seed in range(SEEDS):
        for arm in ARMS:
            time.tick(f"{arm}, seed {seed}")
            module, _ = learn(models["full"], arm, new, steps, seed, time)
            found["modules"].setdefault(arm, module)
            found["arms"].setdefault(arm, []).append(spoken_error(module, new))
        for name, (_, part) in ABLATIONS.items():
            time.tick(f"{name}, seed {seed}")
            module, _ = learn(models[name], part, new, steps, seed, time)
            found["ablations"].setdefault(name, []).append(spoken_error(module, new))
    whole, frames = new.train, new.frames["train"]
    for count in FEWER:
        time.tick(f"{count} sentences")
        new.train, new.frames["train"] = whole[:count], frames[:count]
        found["fewer"][count] = spoken_error(learn(models["full"], "conditional", new, steps, 0, time)[0], new)
    new.train, new.frames["train"] = whole, frames
    return found


def learn(
    source: AdaSpeechTraining, part: Part, new: Speech, steps: int, seed: int, time: Budget
) -> tuple[Adaptation, float]:
    """(adapted for so many steps, the median seconds of a step)."""
    seed_everything(seed, verbose=False)
    module = Adaptation.of(source, part, steps=steps)
    pace = short_run(module, new, steps, time.tick)
    module.eval()
    module.net.references[0] = own_reference(module, new)
    return module, pace


def own_reference(module: AdaSpeechTraining, new: Speech) -> torch.Tensor:
    """The utterance vector of the new voice, of its adaptation sentences alone."""
    module.eval()
    return reference_of(module.net, [torch.from_numpy(new.cache.fetch(clip)["mel"]).float() for clip in new.train])


def counts(source: AdaSpeechTraining) -> dict[str, tuple[int, int]]:
    """{arm: (parameters tuned, numbers stored for a voice)}, the reference's vector not counted, as in the paper."""
    folded = Adapter.of(source.net, "", "")
    found = {}
    for arm in ARMS:
        moved = Adaptation.of(source, arm).net
        count = sum(weight.numel() for weight in tuned(moved, arm))
        stored = folded.numbers - folded.reference.numel() if arm == "conditional" else count
        found[arm] = (count, stored)
    return found


@torch.inference_mode()
def untouched(source: AdaSpeechTraining, module: Adaptation) -> bool:
    """Whether all source voices say the same bits with the new voice beside them."""
    adapter = Adapter.of(module.net, NEW, fingerprint(source.net))
    alone, joined = fold(source.net), fold(source.net, [adapter])
    ids = torch.arange(3, 40)[None]
    voices = torch.arange(len(source.net.voices.weight))[:, None]
    return all(torch.equal(alone(ids, speaker=v).mel, joined(ids, speaker=v).mel) for v in voices)


@torch.inference_mode()
def likeness(modules: dict[str, AdaSpeechTraining], sources: Speech, new: Speech) -> dict[str, float]:
    """{arm: cosine of Resemblyzer's vectors of what it says and of the new voice's recordings}, {} without that judge.

    All is heard through Griffin-Lim; "recordings" are the new voice's own mels so, "nearest source" the most similar of
    the source voices' recordings. What the judge hears no voice in counts 0.
    """
    if find_spec("resemblyzer") is None:
        return {}
    from vitalk.speech.judge.speaker import SpeakerEncoder, similarity

    encoder, spec = SpeakerEncoder(), mel_spec(new.hparams.mel)

    def heard(mel: torch.Tensor) -> np.ndarray:
        try:
            return encoder.embed(Audio(griffin_lim(mel.float(), spec)[0].numpy(), spec.rate).levelled())
        except UserError:
            return np.zeros(256, np.float32)

    def mean(vectors: list[np.ndarray], target: np.ndarray) -> float:
        return float(np.mean([similarity(v, target) if v.any() else 0.0 for v in vectors]))

    target = encoder.embed_speaker([sound(clip, spec) for clip in new.train[:HEARD]])
    rows = [new.cache.fetch(clip) for clip in new.test[:HEARD]]
    own = [clip for name in SOURCES for clip in sources.train if clip.speaker == name]
    voices = {name: [c for c in own if c.speaker == name][:HEARD] for name in SOURCES}
    found = {
        "recordings": mean([heard(torch.from_numpy(row["mel"])[None]) for row in rows], target),
        "nearest source": max(mean([encoder.embed(sound(c, spec)) for c in cs], target) for cs in voices.values()),
    }
    for arm, module in modules.items():
        ids = [torch.from_numpy(row["ids"]).long()[None] for row in rows]
        found[arm] = mean([heard(module.eval().net(one).mel) for one in ids], target)
    return found


def judge(arms: dict[str, list[float]], untouched: bool) -> Verdict:
    """The verdict on held-out mel L1 by what was tuned, a list by seed each.

    "reproduced" where conditional norms are better than the embedding alone with every seed, not worse in the mean than
    ``CLOSE`` times the whole decoder, and source voices stay; "direction only" where they are better than the embedding
    alone with every seed.
    """
    better = all(a < b for a, b in zip(arms["conditional"], arms["embedding"], strict=True))
    close = statistics.mean(arms["conditional"]) <= CLOSE * statistics.mean(arms["decoder"])
    if better and close and untouched:
        return "reproduced"
    return "direction only" if better else "not reproduced"


def report(results: dict[str, Any], data: str) -> Measurement:
    """The measurement in words and figures; results: see ``measure``."""
    arms, numbers = results["arms"], results["numbers"]
    mean = {name: statistics.mean(values) for name, values in (arms | results["ablations"]).items()}
    tuned_, stored = numbers["conditional"]
    heard = results["likeness"]
    likeness = f"; speaker cosine {heard['before']:.3f} before, {heard['conditional']:.3f} after" if heard else ""
    others = [f"{arm} {heard[arm]:.3f}" for arm in ("embedding", "decoder", "all", "recordings") if arm in heard]
    return Measurement(
        claim="Tuning the conditional layer norms and the speaker's vector on 20 sentences equals tuning the whole "
        "decoder, is far better than the vector alone, and stores a few thousand numbers for a voice",
        published=PUBLISHED,
        measured=f"held-out mel L1 with the recordings' durations, pitch and energy: {mean['conditional']:.3f} with "
        f"{tuned_:,} parameters tuned and {stored:,} stored{likeness}; "
        + ", ".join(f"{name} {mean[name]:.3f}" for name in results["ablations"])
        + f"; source voices {'the same bits' if results['untouched'] else 'changed'}",
        baseline=f"{results['before']:.3f} before; "
        + ", ".join(
            f"{label} {mean[arm]:.3f} ({numbers[arm][1]:,} stored)"
            for arm, label in (("embedding", "embedding alone"), ("norm", "scale and bias of plain norms"),
                               ("decoder", "whole decoder"), ("all", "everything"))
        )
        + (f"; speaker cosines {', '.join(others)}" if others else ""),
        verdict=judge(arms, results["untouched"]),
        data=data,
        details={
            "held_out": {name: [round(v, 4) for v in values] for name, values in arms.items()},
            "ablations": {name: [round(v, 4) for v in values] for name, values in results["ablations"].items()},
            "sentences": {str(count): round(value, 4) for count, value in results["fewer"].items()},
            "parameters": {arm: {"tuned": pair[0], "stored": pair[1]} for arm, pair in numbers.items()},
            "speaker_cosine": {name: round(value, 4) for name, value in heard.items()},
        },
    )  # fmt: skip
