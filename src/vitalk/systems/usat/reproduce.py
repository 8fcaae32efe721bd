"""USAT's claims at small scale: content without speaker, vectors without words, and adapters that forget nothing."""

import statistics
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import seed_everything

from vitalk.errors import UserError
from vitalk.experiments import Budget, budget, short_run
from vitalk.measurement import Measurement, Verdict
from vitalk.speech.audio import Audio
from vitalk.speech.experiments import BATCH_FRAMES, align, keep_durations
from vitalk.speech.features import sound
from vitalk.speech.mel import mel_spec
from vitalk.speech.vocoder.griffin_lim import griffin_lim

from .adaptation import Adaptation, Part, held_out, waves
from .adapters import Adapters
from .data import PairedSpeech
from .probes import accuracy, common_word, heard, pairs, without, word_cost
from .training import UsatTraining, margin, mean_voice
from .voices import AdaptedVoice, adapted

SOURCES, NEW = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jm_kumo"), "jf_tebukuro"
# By what is left out: further hyperparameters, further arguments of the model.
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "whole": ({}, {}),
    "no D_p": ({"weights": {"phonemes": 0.0}}, {}),
    "no D_t": ({"weights": {"timbre": 0.0}}, {}),
    "no memory": ({}, {"memory": 0}),
}
SIZE: dict[str, Any] = {
    "dim": 64, "depth": 2, "hidden": 128, "latent": 64, "posterior_layers": 4, "memory": 128, "memory_heads": 1,
    "flow_layers": 2, "voice": 64, "decoder_args": {"dim": 96, "layers": 4},
    "ecapa": {"channels": (64, 64, 64, 128), "kernels": (5, 3, 3, 1), "dilations": (1, 2, 3, 1), "attention": 32,
              "squeeze": 32},
}  # fmt: skip
SECONDS, TESTED, HEARD, SEEDS, PILOT = 60, 40, 4, 2, 4
CLOSE = 0.9  # of what full tuning gains: the paper's adapters "reach" it
PUBLISHED = (
    "without D_t the share of accepted speakers falls from 80.1 to 76.2 %, without D_p to 71.0 %; with the memory L_kl "
    "is larger and L_re smaller; adapters of 0.64 M weights reach tuning all 36.4 M (SMCS 0.833 "
    'against 0.795), and keep the word "hundred" that transcripts omit, which full tuning destroys'
)


@dataclass
class Row:
    """What one seed's trainings come to, on held-out utterances.

    z, content, open: how often a probe finds the speaker in z, in the content, and in the content without D_t. pairs,
    leaky: how often it tells pairs of one utterance from pairs of two, with and without D_p; 0.5 is chance. margin: of
    the vectors, see ``training.margin``. mel, mel_plain, kl, kl_plain: losses with and without memory. before,
    adapters, full: L_kl + L_dur of a new voice, before and after adaptation. forgot, forgot_full: nats a frame that a
    word costs more where transcripts omitted it. likeness, likeness_after: Resemblyzer's cosine with the new voice's
    recordings, 0 without that judge. share: of the weights that adapters are. untouched: own speakers say the same bits
    beside an adapted one.
    """

    z: float
    content: float
    open: float
    pairs: float
    leaky: float
    margin: float
    mel: float
    mel_plain: float
    kl: float
    kl_plain: float
    before: float
    adapters: float
    full: float
    forgot: float
    forgot_full: float
    likeness: float
    likeness_after: float
    share: float
    untouched: bool


def measure(minutes: float, data: Path) -> Measurement:
    """Four voices of kokoro_en teach the model and its ablations, equal steps each; a fifth is adapted to, on a minute.

    minutes: the budget; a sixth trains an aligner for the sources (``UsatTraining``), six tenths of the rest them.
    data: the data root.
    """
    with TemporaryDirectory() as folder, budget("USAT", minutes) as clock:
        clock.tick("features")
        clips = int(min(190, max(12, 15 * minutes)))
        sources, new = corpora(data / "speech" / "kokoro_en", clips)
        clock.tick("aligning")
        keep_durations(align(sources, 10 * minutes, clock.tick), folder, sources)
        seed_everything(0, verbose=False)
        pace = short_run(make("whole", sources, PILOT), sources, PILOT, clock.tick)
        steps = max(PILOT, int(0.6 * clock.tick() / (SEEDS * len(ARMS) * pace)))
        rows, tuning = [], None
        for seed in range(SEEDS):
            models = {arm: train(arm, sources, steps, seed, clock) for arm in ARMS}
            if tuning is None:
                share = 0.25 * clock.tick() if SEEDS == 1 else 0.25 * 60 * minutes / SEEDS
                tuning = max(PILOT, int(share / (4 * pace)))
            rows.append(row(models, sources, new, tuning, seed, clock))
    told = (
        f"{len(SOURCES)} voices of kokoro_en with {clips} sentences each at most ({steps} steps of {BATCH_FRAMES:,} "
        f"frames), {len(new.train)} sentences, about {SECONDS} s, of another ({tuning} steps), {len(new.test)} held "
        f"out, mels as sound, {len(rows)} seeds"
    )
    return report(rows, told)


def corpora(path: Path, clips: int) -> tuple[PairedSpeech, PairedSpeech]:
    """(source voices with so many sentences each, a minute of the new voice and a held-out part)."""
    options: dict[str, Any] = {"batch_frames": BATCH_FRAMES, "workers": 0}
    sources = PairedSpeech(str(path), reference_frames=300, speakers=list(SOURCES), held_out=0.1, **options)
    for part, count in (("train", clips), ("test", max(clips // 8, 2))):
        by = {name: [clip for clip in getattr(sources, part) if clip.speaker == name][:count] for name in SOURCES}
        setattr(sources, part, [clip for found in by.values() for clip in found])
    new = PairedSpeech(str(path), references=False, speakers=[NEW], held_out=0.2, **options)
    new.test = new.test[:TESTED]
    seconds, chosen = 0.0, []
    spec = mel_spec(new.hparams.mel)
    for clip in new.train:
        chosen.append(clip)
        seconds += len(new.wave(clip)) / spec.rate
        if seconds >= SECONDS:
            break
    new.train = chosen
    for corpus in (sources, new):
        corpus.setup()
    return sources, new


def make(arm: str, corpus: PairedSpeech, steps: int) -> UsatTraining:
    """The training of an arm, for so many steps, a quarter of which are the ramp."""
    told, sizes = ARMS[arm]
    module = UsatTraining(
        corpus.n_symbols, corpus.n_speakers, variant="small", model_args={**SIZE, **sizes}, mel=corpus.hparams.mel,
        schedule="cosine", lr=1e-3, warmup_steps=max(steps // 10, 1), ramp=max(steps // 4, 1), clip=50.0, **told,
    )  # fmt: skip
    module.build(*corpus.spreads(20))
    return module


def train(arm: str, corpus: PairedSpeech, steps: int, seed: int, clock: Budget) -> UsatTraining:
    """The model of an arm after so many steps."""
    clock.tick(f"{arm}, seed {seed}")
    seed_everything(seed, verbose=False)
    module = make(arm, corpus, steps)
    short_run(module, corpus, steps, clock.tick)
    return module.eval()


def row(
    models: dict[str, UsatTraining], sources: PairedSpeech, new: PairedSpeech, steps: int, seed: int, clock: Budget
) -> Row:
    """What a seed's models come to; steps: of each adaptation."""
    clock.tick(f"probes, seed {seed}")
    parts = {arm: [heard(module, sources, part) for part in ("train", "test")] for arm, module in models.items()}

    def speaker(arm: str, name: str) -> float:
        return accuracy(*((found[name], found["speaker"]) for found in parts[arm]))

    def told(arm: str) -> float:
        return accuracy(*(pairs(found) for found in parts[arm]))

    def mean(arm: str, name: str) -> float:
        return float(parts[arm][1][name].mean())

    tests = parts["whole"][1]
    return Row(
        z=speaker("whole", "z"), content=speaker("whole", "content"), open=speaker("no D_t", "content"),
        pairs=told("whole"), leaky=told("no D_p"), margin=float(margin(tests["voice"], tests["speaker"]) or 0.0),
        mel=mean("whole", "mel"), mel_plain=mean("no memory", "mel"), kl=mean("whole", "kl"),
        kl_plain=mean("no memory", "kl"), **adaptations(models["whole"], new, steps, seed, clock),
    )  # fmt: skip


def adaptations(source: UsatTraining, new: PairedSpeech, steps: int, seed: int, clock: Budget) -> dict[str, Any]:
    """The figures of ``Row`` that are of adaptation."""
    begin = mean_voice(source.net, waves(new, new.train))
    start = Adaptation.of(source, begin, "voice")
    found: dict[str, Any] = {"before": held_out(start, new), "likeness": likeness(start, new)}
    word, kept = common_word(new.train, new.test), new.train
    done: dict[tuple[Part, bool], Adaptation] = {}
    for omitted in (False, True):
        new.train = [without(clip, word) for clip in kept] if omitted else kept
        new.setup()
        for part in ("adapters", "all"):
            clock.tick(f"{part}{', a word omitted' if omitted else ''}, seed {seed}")
            seed_everything(seed, verbose=False)
            module = Adaptation.of(source, begin, part, steps=steps)
            short_run(module, new, steps, clock.tick)
            done[part, omitted] = module
    new.train = kept
    new.setup()
    cost = {key: word_cost(module, new, word) for key, module in done.items()}
    tuned, kinds = done["adapters", False], Adapters()
    moved = sum(weight.numel() for weight in tuned.net.parameters() if weight.requires_grad)
    return found | {
        "adapters": held_out(tuned, new), "full": held_out(done["all", False], new),
        "forgot": cost["adapters", True] - cost["adapters", False],
        "forgot_full": cost["all", True] - cost["all", False], "likeness_after": likeness(tuned, new),
        "share": moved / sum(weight.numel() for weight in source.net.parameters()),
        "untouched": untouched(source, AdaptedVoice.of(tuned.net, NEW, kinds, "")),
    }  # fmt: skip


@torch.inference_mode()
def untouched(source: UsatTraining, voice: AdaptedVoice) -> bool:
    """Whether the model's own speakers say the same bits before and after an adapted voice stands beside them."""

    def say(seed: int) -> list[torch.Tensor]:
        ids = torch.arange(3, 40)[None]
        torch.manual_seed(seed)
        return [source.net.eval()(ids, speaker=torch.tensor([n])).mel for n in range(len(source.net.voices))]

    before = say(0)
    adapted(source.net, voice)
    return all(torch.equal(a, b) for a, b in zip(before, say(0), strict=True))


@torch.inference_mode()
def likeness(module: Adaptation, new: PairedSpeech) -> float:
    """Cosine of Resemblyzer's vectors of what is said and of the voice's recordings; 0 without that judge.

    All is heard through Griffin-Lim. What the judge hears no voice in counts 0.
    """
    if find_spec("resemblyzer") is None:
        return 0.0
    from vitalk.speech.judge.speaker import SpeakerEncoder, similarity

    encoder, spec, scores = SpeakerEncoder(), mel_spec(new.hparams.mel), []
    target = encoder.embed_speaker([sound(clip, spec) for clip in new.train[:HEARD]])
    for clip in new.test[:HEARD]:
        torch.manual_seed(0)
        mel = module.eval().net(torch.from_numpy(new.cache.fetch(clip)["ids"]).long()[None]).mel
        try:
            said = encoder.embed(Audio(griffin_lim(mel.float(), spec)[0].numpy(), spec.rate).levelled())
            scores.append(similarity(said, target))
        except UserError:
            scores.append(0.0)
    return statistics.mean(scores)


def judge(rows: list[Row]) -> Verdict:
    """The verdict on rows by seed.

    "reproduced": in every seed the probe finds the speaker less often in the content than in z, D_t makes it no easier
    and D_p leaves pairs nearer to chance, vectors tell speakers apart, own speakers stay, and adaptation lowers the
    held-out loss; in the mean adapters, less than a tenth of these small models, gain ``CLOSE`` of what full tuning
    gains or more, and forget less. "direction only": content has less of the speaker than z and adaptation helps, in
    every seed.
    """
    helped = all(r.content < r.z and r.adapters < r.before for r in rows)
    apart = all(r.content <= r.open and abs(r.pairs - 0.5) < abs(r.leaky - 0.5) and r.margin > 0 for r in rows)

    def mean(name: str) -> float:
        return statistics.mean(getattr(r, name) for r in rows)

    # Gains and not losses are compared, as these may be negative.
    reached = mean("before") - mean("adapters") >= CLOSE * (mean("before") - mean("full"))
    kept = mean("forgot") < mean("forgot_full") and all(r.untouched and r.share < 0.1 for r in rows)
    if helped and apart and reached and kept:
        return "reproduced"
    return "direction only" if helped else "not reproduced"


def report(rows: list[Row], data: str) -> Measurement:
    """The measurement in words and figures."""
    m = {name: statistics.mean(getattr(r, name) for r in rows) for name in asdict(rows[0])}
    likeness = (
        f"; speaker cosine {m['likeness']:.3f} before, {m['likeness_after']:.3f} after" if m["likeness_after"] else ""
    )
    return Measurement(
        claim="Discriminators take the speaker out of the content and words out of the speaker's vector; adapters of a "
        "hundredth of the weights adapt as full tuning does, and keep a word that transcripts omit",
        published=PUBLISHED,
        measured=f"speaker found in the content {m['content']:.0%}; pairs of one utterance told {m['pairs']:.0%}; "
        f"L_kl + L_dur of a new voice {m['adapters']:.2f} with adapters of {m['share']:.1%} of the weights; an omitted "
        f"word costs {m['forgot']:.2f} nats a frame{likeness}; with memory mel L1 {m['mel']:.3f}, L_kl {m['kl']:.2f}; "
        f"own speakers {'the same bits' if all(r.untouched for r in rows) else 'changed'}",
        baseline=f"{m['z']:.0%} in z, {m['open']:.0%} in the content without D_t; {m['leaky']:.0%} without D_p; "
        f"{m['before']:.2f} before, {m['full']:.2f} with everything tuned; a word {m['forgot_full']:.2f} so; "
        f"without memory {m['mel_plain']:.3f}, {m['kl_plain']:.2f}",
        verdict=judge(rows),
        data=data,
        details={"seeds": [{k: v if isinstance(v, bool) else round(v, 4) for k, v in asdict(r).items()} for r in rows]},
    )
