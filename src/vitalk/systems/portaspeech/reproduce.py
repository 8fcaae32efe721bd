"""PortaSpeech's claims measured: a quarter of FastSpeech 2, a flow for the prior and one for detail, shared layers."""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from lightning import seed_everything
from torch import Tensor, nn

from vitalk.catalog import find
from vitalk.experiments import Budget, budget, short_run
from vitalk.measurement import Measurement, Verdict
from vitalk.memory import peak_memory
from vitalk.speech.experiments import BATCH_FRAMES, align, keep_durations, some
from vitalk.speech.features import Speech

from .model import LOG_2PI
from .training import PortaSpeechTraining
from .variants import VARIANTS

SPEAKER, SEEDS, PILOT = "jm_kumo", 3, 6
SYMBOLS, TEXT, FRAMES = 79, 150, 860  # a sentence of 10 s at 86 frames a second
SIZE: dict[str, Any] = {
    "dim": 96, "depth": 2, "word_depth": 2, "hidden": 192, "kernel": 3,
    "variational": {"dim": 96, "kernel": 3, "encoder": 4, "decoder": 3, "prior": 3, "prior_dim": 32},
    "postnet": {"dim": 64, "steps": 8, "layers": 3, "share": 4, "temperature": 0.6},
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "whole": {},
    "no flow prior": {"variational": {"prior": 0}},
    "nothing shared": {"postnet": {"share": 1}},
    # To the small sizes as the paper's normal model is to its small one.
    "normal": {"dim": 144, "depth": 3, "word_depth": 3, "hidden": 288, "kernel": 5,
               "variational": {"dim": 144, "kernel": 5, "decoder": 4, "prior": 4, "prior_dim": 64}},
}  # fmt: skip
PUBLISHED = (
    "small: 6.7 M weights and about a third of the memory of FastSpeech 2, which has 27 M; quality falls without the "
    "flow prior and little by sharing; digits of the ablations unconfirmed"
)


@dataclass
class Row:
    """What one seed's trainings come to, on held-out utterances.

    flow, plain: loss of the generator with a flow and without one as its prior. normal: of a generator that is to it as
    the paper's normal model is to the small one. shared, separate: nats per point of
    the post-net with groups and without. coarse, sharp, real: sharpness. posterior, prior, mean: mel L1 with z of the
    posterior and of the prior, and of the corpus' mean frame. gaussian: nats per point of a normal distribution a bin.
    """

    flow: float
    plain: float
    normal: float
    shared: float
    separate: float
    coarse: float
    sharp: float
    real: float
    posterior: float
    prior: float
    mean: float
    gaussian: float


def measure(minutes: float, data: Path) -> Measurement:
    """Footprints at the paper's sizes with random weights, then short trainings on one voice of kokoro_en.

    minutes: the budget; a sixth trains the aligner that gives the durations. data: the data root.
    """
    with budget("PortaSpeech", minutes) as clock, TemporaryDirectory() as folder:
        clock.tick("footprints")
        sizes = {name: footprint(name) for name in ("normal", "small", "fastspeech2")}
        clock.tick("features")
        clips = int(min(2_300, max(40, 60 * minutes)))
        options: dict[str, Any] = {"speakers": [SPEAKER], "limit": clips, "batch_frames": BATCH_FRAMES, "workers": 0}
        corpus = Speech(str(data / "speech" / "kokoro_en"), held_out=0.08, **options)
        corpus.setup()
        clock.tick("aligning")
        keep_durations(align(corpus, 10 * minutes, clock.tick), folder, corpus)
        rows, steps = ablate(corpus, clock)
    told = f"{clips} utterances of one synthetic speaker (kokoro_en), {steps} steps of {BATCH_FRAMES:,} frames a stage"
    return report(sizes, rows, inverse_error(), told)


# What it weighs


def build(name: str) -> nn.Module:
    """A model of the paper's size with random weights, ready to speak. "fastspeech2" is the first author's own size."""
    if name != "fastspeech2":
        model = VARIANTS[name](SYMBOLS).eval()
        for heard in ("enter", "encoder", "posterior"):  # of recordings: nobody speaks with them
            setattr(model.generator, heard, None)
        return model.fold()
    peer = import_module(find("fastspeech2").package)  # a peer that is measured; nothing here is built on it
    return peer.fastspeech2(SYMBOLS, variance_predictor=peer.Predictor(layers=5, kernel=5)).eval()


@torch.inference_mode()
def say(model: nn.Module) -> Tensor:
    """A sentence of 10 s: the mel [1, 80, frames]."""
    ids = torch.randint(1, SYMBOLS, (1, TEXT), generator=torch.Generator().manual_seed(0))
    durations = torch.full((1, TEXT), FRAMES // TEXT)
    durations[:, : FRAMES % TEXT] += 1
    return model(ids, durations=durations).mel


def once(name: str) -> None:
    """What the process does whose memory is measured: build and speak, or nothing but begin."""
    torch.set_num_threads(1)
    if name != "nothing":
        say(build(name))
    else:
        import_module(find("fastspeech2").package)


def footprint(name: str, rounds: int = 3) -> dict[str, float]:
    """{"parameters", "peak_mb" above a process that has but loaded its libraries, "cpu_seconds" a second of speech}."""
    model, taken = build(name), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(rounds):
        begun = time.process_time()
        frames = say(model).shape[2]
        taken.append((time.process_time() - begun) * 22_050 / 256 / frames)
    torch.set_num_threads(threads)
    program = "from vitalk.systems.portaspeech.reproduce import once; once({!r})"
    peaks = [peak_memory([sys.executable, "-c", program.format(which)]) for which in (name, "nothing")]
    return {
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "peak_mb": (peaks[0] - peaks[1]) / 1e6,
        "cpu_seconds": statistics.median(taken),
    }


@torch.inference_mode()
def inverse_error() -> dict[str, float]:
    """Largest distance of inverse(forward(x)) from x, of both flows of the small model, moved from their beginning."""
    torch.manual_seed(0)
    model = VARIANTS["small"](SYMBOLS).eval()
    for weight in model.parameters():
        weight.add_(0.02 * torch.randn_like(weight))
    mel, condition, z, down = (torch.randn(1, c, t) for c, t in ((80, 64), (208, 64), (16, 16), (128, 16)))
    post, prior = model.postnet, model.generator.prior
    back = {"post-net": post.inverse(post(mel, condition)[0], condition) - mel}
    back["prior"] = prior.inverse(prior(z, down), down) - z
    return {name: float(off.abs().max()) for name, off in back.items()}


# What it learns


def ablate(corpus: Speech, clock: Budget) -> tuple[list[Row], int]:
    """(a row a seed, the steps of each training). Another seed begins only where there is time for all of it."""
    seed_everything(0, verbose=False)
    pilot = make("whole", corpus, PILOT)
    pace = short_run(pilot, corpus, PILOT, clock.tick)
    steps = max(PILOT, int(0.7 * clock.tick() / (SEEDS * 6 * pace)))  # four trainings, and one of twice the work
    rows: list[Row] = []
    for seed in range(SEEDS):
        before = clock.tick(f"seed {seed}")
        rows.append(row(corpus, steps, seed, clock.tick))
        left = clock.tick()
        if left < 0.9 * (before - left):
            break
    return rows, steps


def row(corpus: Speech, steps: int, seed: int, tick: Callable[[], object]) -> Row:
    """The five trainings of a seed: three generators, and two post-nets on the first of them."""
    flow = train(make("whole", corpus, steps), corpus, steps, seed, tick)
    plain = train(make("no flow prior", corpus, steps), corpus, steps, seed, tick)
    normal = train(make("normal", corpus, steps), corpus, steps, seed, tick)
    posts = []
    for name in ("whole", "nothing shared"):
        module = make(name, corpus, steps, "post")
        for part in ("linguistic", "generator"):
            getattr(module.net, part).load_state_dict(getattr(flow.net, part).state_dict())
        module.fit_norms(next(iter(some(corpus, most=1))))
        posts.append(train(module, corpus, steps, seed, tick))
    losses = [held_out(module, corpus) for module in (flow, plain, normal, *posts)]
    return Row(*losses, **spectra(posts[0], corpus))


def make(arm: str, corpus: Speech, steps: int, stage: str = "generator") -> PortaSpeechTraining:
    """The training of an arm."""
    sizes = SIZE | {k: {**SIZE[k], **v} if isinstance(v, dict) else v for k, v in ARMS[arm].items()}
    module = PortaSpeechTraining(
        corpus.n_symbols, variant="small", model_args=sizes, mel=corpus.hparams.mel, stage=stage, lr=1e-3, min_lr=1e-5,
        warmup_steps=max(steps // 10, 1), kl_start=steps // 16,
    )  # fmt: skip
    module.build(*corpus.spreads(100))
    if stage == "generator":
        module.fit_mean(next(iter(some(corpus, most=1))))
    return module


def train(
    module: PortaSpeechTraining, corpus: Speech, steps: int, seed: int, tick: Callable[[], object]
) -> PortaSpeechTraining:
    """The module after so many steps."""
    seed_everything(seed, verbose=False)
    short_run(module.train(), corpus, steps, tick)
    return module.eval()


@torch.inference_mode()
def held_out(module: PortaSpeechTraining, corpus: Speech) -> float:
    """The loss of a stage on held-out utterances, by their frames, without that of durations."""
    torch.manual_seed(0)
    sums = [0.0, 0]
    for batch in some(corpus):
        found = {k: v for k, v in module.losses(batch).items() if k not in ("duration", "sentence")}
        frames = int(batch["mel_lengths"].sum())
        sums = [sums[0] + float(module.weigh(found)) * frames, sums[1] + frames]
    return sums[0] / sums[1]


@torch.inference_mode()
def spectra(module: PortaSpeechTraining, corpus: Speech) -> dict[str, float]:
    """The figures of ``Row`` that are of spectrograms, told the durations; module: of the second stage."""
    torch.manual_seed(0)
    told: dict[str, list[Tensor]] = {name: [] for name in ("coarse", "sharp", "real", "posterior", "prior")}
    frames: list[Tensor] = []
    for batch in some(corpus):
        reading, posterior, mel = module.coarse(batch)
        out = module.net(batch["ids"], batch["text_lengths"], batch["durations"])
        mask = reading.frame_mask
        for name, spectrum in (("coarse", out.mel_coarse), ("sharp", out.mel), ("real", mel)):
            told[name].append(laplacian(spectrum, mask))
        for name, spectrum in (("posterior", posterior), ("prior", out.mel_coarse)):
            told[name].append((spectrum - mel).abs().mean(1)[mask])
        frames.append(mel.transpose(1, 2)[mask])
    whole = {name: torch.cat(values) for name, values in told.items()}
    found = {name: float(v.mean() if name in ("posterior", "prior") else v.var()) for name, v in whole.items()}
    known = torch.cat(frames)
    spread = known.std(0).log().mean() + (1 + LOG_2PI) / 2
    return {**found, "mean": float((known - known.mean(0)).abs().mean()), "gaussian": float(spread)}


def laplacian(mel: Tensor, mask: Tensor) -> Tensor:
    """Laplacian of mels [batch, mels, frames] at the points that see no padding, flat; its variance is sharpness."""
    kernel = mel.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    found = F.conv2d(mel[:, None].float(), kernel[None, None])[:, 0]
    return found.transpose(1, 2)[mask[:, 2:]].flatten()


# What it comes to


def judge(sizes: dict[str, dict[str, float]], rows: list[Row]) -> Verdict:
    """The verdict.

    "reproduced": the small model has a third of the weights of FastSpeech 2 or less and half of its memory; in every
    seed the post-net is sharper than the coarse mel and nearer to real ones; without the flow prior the loss rises by
    more than two standard errors; sharing costs less than 0.05 nats a point; and the loss of the normal size is less
    than a twentieth lower. "direction only": it is smaller in
    both, and the post-net is sharper in every seed.
    """
    small, peer = sizes["small"], sizes["fastspeech2"]
    ratios = [peer[name] / max(small[name], 1e-9) for name in ("parameters", "peak_mb")]
    sharper = all(r.sharp > r.coarse for r in rows)
    nearer = all(abs(r.sharp - r.real) < abs(r.coarse - r.real) for r in rows)
    rises = [r.plain - r.flow for r in rows]
    error = statistics.stdev(rises) / len(rises) ** 0.5 if len(rises) > 1 else float("inf")
    cheap = statistics.mean(r.shared - r.separate for r in rows) < 0.05
    slight = statistics.mean(r.flow for r in rows) <= 1.05 * statistics.mean(r.normal for r in rows)
    learnt = sharper and nearer and statistics.mean(rises) > 2 * error and cheap and slight
    if ratios[0] >= 3 and ratios[1] >= 2 and learnt:
        return "reproduced"
    return "direction only" if min(ratios) > 1 and sharper else "not reproduced"


def report(sizes: dict[str, dict[str, float]], rows: list[Row], errors: dict[str, float], data: str) -> Measurement:
    """The measurement in words and figures. errors: see ``inverse_error``."""
    small, peer = sizes["small"], sizes["fastspeech2"]
    mean = {name: statistics.mean(getattr(r, name) for r in rows) for name in asdict(rows[0])}
    return Measurement(
        claim="A quarter of the weights and a third of the memory of FastSpeech 2 are enough, by a VAE with a flow as "
        "its prior and a flow with shared layers that sharpens",
        published=PUBLISHED,
        measured=f"small: {small['parameters'] / 1e6:.1f} M weights, {small['peak_mb']:.0f} MB above the libraries, "
        f"{small['cpu_seconds']:.3f} s of processor a second of speech; sharpness {mean['coarse']:.2f} coarse, "
        f"{mean['sharp']:.2f} sharpened; loss {mean['flow']:.3f} with the flow prior; {mean['shared']:.3f} nats a "
        "point with shared layers",
        baseline=f"FastSpeech 2: {peer['parameters'] / 1e6:.1f} M, {peer['peak_mb']:.0f} MB, "
        f"{peer['cpu_seconds']:.3f} s; sharpness {mean['real']:.2f} of recordings; loss {mean['plain']:.3f} without "
        f"the flow, {mean['normal']:.3f} in the normal size; {mean['separate']:.3f} nats with nothing shared",
        verdict=judge(sizes, rows),
        data=f"{data}, {len(rows)} seeds; footprints with random weights at the paper's sizes, 10 s of speech",
        details={
            "footprint": sizes,
            "inverse_error": errors,
            "seeds": [{name: round(value, 4) for name, value in asdict(r).items()} for r in rows],
        },
    )
