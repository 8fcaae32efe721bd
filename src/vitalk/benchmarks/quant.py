"""Every quantization method on one trained model and one data set: accuracy, time, bytes, and real integers."""

import tempfile
import time as clock
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitalk.deploy.kernels import profile
from vitalk.deploy.load import Loaded, load_model
from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.runtime import open_engine
from vitalk.errors import UserError
from vitalk.experiments import Budget, budget
from vitalk.measurement import machine
from vitalk.nn.quant.describe import arithmetic, packed_bytes
from vitalk.quantization import METHODS, quantize
from vitalk.vision.cost import latencies
from vitalk.vision.data import cifar_arrays
from vitalk.vision.experiments import Pictures, draw, top1

BITS = ((8, 8), (6, 6), (4, 4), (3, 3))
MIXED = ((4, 4),)
EXPORTED = ((8, 8), (4, 4))  # bits whose deployed form is exported and run; the others would be as fast
DRAWS, CALIBRATION = 3, 32
FASTER: dict[str, dict[str, Any]] = {"ptq4vit": {"candidates": 20}}  # a fifth of the paper's candidates
NOTE = (
    "top-1: the paper's form of each method, simulated, mean over {draws} draws of {count} calibration pictures, "
    "{pictures} test pictures; spread: the standard deviation over the draws. MB: weights packed to their bits. file: "
    "the deployed form (symmetric weights, one whole-number scale a tensor, attention products in float), exported and "
    "run by onnxruntime on the same pictures; int8 products: those that its profile shows to be integer kernels, of "
    "all. sites int8: what the paper's form would have in integers; everything else is simulated. Steps of "
    "reconstruction a unit: {steps}; ptq4vit searches 20 candidates in place of 100."
)


@dataclass(frozen=True)
class Row:
    """A method at a number of bits."""

    method: str
    bits: tuple[int, int]
    mixed: bool = False

    @property
    def name(self) -> str:
        """As it stands in the table."""
        return f"W{self.bits[0]}A{self.bits[1]}" + (" mixed" if self.mixed else "")

    def make(self, model: nn.Module, images: Tensor, steps: int, deployed: bool = False) -> nn.Module:
        """The quantized model; deployed: in the form that is exported."""
        form: dict[str, Any] = {"integer": True, "attention": "float"} if deployed else {"integer": False}
        own = steps if METHODS[self.method].steps else None
        more = FASTER.get(self.method, {})
        return quantize(self.method, model, images, self.bits, steps=own, mixed=self.mixed, **form, **more)


def rows_of(methods: list[str]) -> list[Row]:
    """The rows of the table, in its order."""
    found = []
    for name in methods:
        found += [Row(name, bits) for bits in BITS]
        if METHODS[name].mixed is not None:
            found += [Row(name, bits, mixed=True) for bits in MIXED]
    return found


def cifar(loaded: Loaded, data: Path, split: str, count: int) -> Pictures:
    """CIFAR-10 as the model reads it, enlarged to its size."""
    pixels, labels = cifar_arrays(data / "images" / "cifar10", split, count)
    pre = loaded.preprocess
    if pre.size != (32, 32):
        wide = torch.nn.functional.interpolate(pixels.float(), pre.size, mode="bicubic", antialias=True)
        pixels = wide.round().clamp(0, 255).to(torch.uint8)
    return Pictures(pixels, labels, mean=pre.mean, std=pre.std)


def deployed(model: nn.Module, loaded: Loaded, test: Pictures) -> tuple[dict[str, Any], Callable[[], object]]:
    """(What the exported file does: accuracy in percent, bytes, integer products; a call that reads one picture)."""
    with tempfile.TemporaryDirectory() as folder:
        labels = [str(i) for i in range(loaded.model.num_classes)]
        file = export_onnx(model, Path(folder) / "model.onnx", loaded.preprocess, labels)
        run, _ = open_engine(file)
        hits = sum(int((run(x.numpy()).argmax(1) == y.numpy()).sum()) for x, y in test.batches(50))
        image = np.zeros((1, 3, *loaded.preprocess.size), np.float32)
        kernels = profile(file, {"image": image})
        told = {
            "file_top1": 100 * hits / len(test), "file_bytes": file.stat().st_size,
            "int8_products": f"{kernels.integer} of {kernels.integer + kernels.in_float}",
        }  # fmt: skip
        return told, partial(run, image)


def judged(
    rows: list[Row], loaded: Loaded, train: Pictures, test: Pictures, steps: int, time: Budget
) -> list[dict[str, Any]]:
    """The table's rows, after one of the float model."""
    images = [draw(train, CALIBRATION, seed) for seed in range(DRAWS)]
    baseline = top1(loaded.model, test)
    size = sum(4 * p.numel() for p in loaded.model.parameters())
    found = [{"method": "float", "bits": "W32A32", "top1": baseline, "bytes": size}]
    told, run = deployed(loaded.model, loaded, test)
    found[0] |= told
    runs = {0: run}
    for row in rows:
        accuracies, spent = [], []
        for seed, some in enumerate(images):
            time.tick(f"{row.method} {row.name}, draw {seed}")
            before = clock.monotonic()
            model = row.make(loaded.model, some, steps)
            spent.append(clock.monotonic() - before)
            accuracies.append(top1(model, test))
        kinds = list(arithmetic(model).values())
        told = {
            "method": row.method, "bits": row.name, "top1": mean(accuracies), "spread": stdev(accuracies),
            "drop": baseline - mean(accuracies), "calibration_seconds": mean(spent), "bytes": packed_bytes(model),
            "sites_int8": f"{kinds.count('int8')} of {len(kinds)}",
        }  # fmt: skip
        if row.bits in EXPORTED and not row.mixed:
            time.tick(f"{row.method} {row.name}, exported")
            of_file, runs[len(found)] = deployed(row.make(loaded.model, images[0], steps, deployed=True), loaded, test)
            told |= of_file
        found.append(told)
    time.tick("latency of the exported files, in turns")
    for index, seconds in latencies(runs, 5, 300, 0.5 * len(runs)).items():
        found[index]["file_ms"] = 1000 * seconds
    return found


def affordable(rows: list[Row], loaded: Loaded, images: Tensor, few: Pictures, time: Budget) -> tuple[int, int]:
    """(steps of reconstruction, test pictures) that the time allows: half of it for each, after one trial."""
    before = time.tick("timing")
    model = Row("repq-vit", (4, 4)).make(loaded.model, images, 0)
    calibrated = time.tick()
    top1(model, few)
    picture = (calibrated - time.tick()) / len(few)
    tuned = [row for row in rows if METHODS[row.method].steps]
    step = 0.0
    if tuned:
        start = clock.monotonic()
        tuned[0].make(loaded.model, images, 2)
        one = clock.monotonic() - start
        tuned[0].make(loaded.model, images, 12)
        step = max((clock.monotonic() - start - 2 * one) / 10, 1e-3)
    left = time.tick() - (before - calibrated) * len(rows) * (DRAWS + 1) * 4
    steps = int(min(max(0.5 * left / (step * max(len(tuned), 1) * (DRAWS + 1)), 5), 1000)) if tuned else 0
    pictures = int(min(max(0.4 * left / (picture * len(rows) * DRAWS * 1.3), 250), 10_000))
    return steps, pictures


def compare(minutes: float, data: Path, model: str, methods: list[str]) -> dict[str, Any]:
    """A record with a row a method and number of bits.

    minutes: the time that it may take. data: the data root. model: what ``load_model`` takes, trained on CIFAR-10.
    Raises UserError for models of other classes.
    """
    loaded = load_model(model)
    if loaded.model.num_classes != 10:
        raise UserError(
            f"{model} knows {loaded.model.num_classes} classes; this bench has CIFAR-10, so train it on that"
        )
    with budget("quantization", minutes) as time:
        train, test = cifar(loaded, data, "train", 5000), cifar(loaded, data, "test", 10_000)
        rows = rows_of(methods)
        steps, count = affordable(rows, loaded, draw(train, CALIBRATION, 0), test.spaced(250), time)
        found = judged(rows, loaded, train, test.spaced(count), steps, time)
    note = NOTE.format(draws=DRAWS, count=CALIBRATION, pictures=count, steps=steps)
    return {"machine": machine(), "model": loaded.name, "note": note, "rows": found}


def draw_plot(record: dict[str, Any], path: Path) -> None:
    """Accuracy by bits, a line a method, as a picture file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [f"W{w}A{a}" for w, a in BITS]
    plain, *rows = record["rows"]
    axes.axhline(plain["top1"], color="0.7", label="float")
    for i, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        found = {row["bits"]: row for row in rows if row["method"] == method}
        shown = [found[name] for name in names]
        style = {"marker": "osD^v<>pP*"[i % 10], "color": f"C{i % 10}", "linestyle": "-" if i < 10 else "--"}
        axes.errorbar(names, [r["top1"] for r in shown], [r["spread"] for r in shown], label=method, **style)
    axes.set(ylabel="top-1, %", title=f"{record['model']}: {DRAWS} calibration draws")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=150)
