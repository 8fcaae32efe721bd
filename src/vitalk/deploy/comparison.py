"""A compressed model against the one it came from: accuracy and cost of the files, as table, report and plot."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vitalk.deploy.kernels import profile
from vitalk.deploy.load import timm_transform
from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.runtime import Eye
from vitalk.errors import UserError
from vitalk.measurement import machine
from vitalk.memory import peak_memory
from vitalk.vision.cost import count, file_size, latencies


def measure(
    model: Any, file: Path, preprocess: Any, labels: list[str], judged: Any, pack: bool = False
) -> dict[str, Any]:
    """Accuracy of the torch model and of its ONNX file on the same pictures, and the file's cost.

    pack: see ``export_onnx``.
    """
    cost = count(model, torch.zeros(1, 3, *preprocess.size))
    export_onnx(model, file, preprocess, labels, pack=pack)
    eye = Eye.load(file)
    right_torch, right_file, agree = _judge(model, eye, preprocess, judged)
    batches = {b: np.zeros((b, 3, *preprocess.size), np.float32) for b in (1, 16)}
    times = latencies({str(b): (lambda x=x: eye.logits(x)) for b, x in batches.items()}, seconds=20)
    code = "import sys, numpy; from vitalk.deploy.runtime import Eye; eye = Eye.load(sys.argv[1]); "
    code += "eye.logits(numpy.zeros((1, 3, *eye.preprocess.size), numpy.float32))"
    kernels = profile(file, {"image": batches[1]})
    return {
        "torch_top1": right_torch, "file_top1": right_file, "agreement": agree,
        "int8_products": kernels.integer, "float_products": kernels.in_float,
        "parameters": cost.params, "macs": cost.macs, "bytes": file_size(file),
        "ms_batch1": 1e3 * times["1"], "ms_batch16": 1e3 * times["16"],
        "peak_bytes": peak_memory([sys.executable, "-c", code, str(file)]),
    }  # fmt: skip


def _judge(model: Any, eye: Any, preprocess: Any, judged: Any, batch: int = 16) -> tuple[float, float, float]:
    """(top-1 of torch with timm's own transform, top-1 of the file with the file's, share of equal decisions), %."""
    transform, decided = timm_transform(preprocess), []
    starts = range(0, len(judged), batch)
    for start in track(starts, "evaluating", console=Console(stderr=True)):
        pictures = [judged[i] for i in range(start, min(start + batch, len(judged)))]
        with torch.inference_mode():
            logits = model(torch.stack([transform(p) for p, _ in pictures]))
        if not logits.isfinite().all():
            raise UserError("the model answers NaN or infinite logits to some of the pictures; check its weights")
        ours = logits.argmax(1).numpy()
        theirs = eye.logits(np.stack([eye.preprocess(p) for p, _ in pictures])).argmax(1)
        decided += zip(ours, theirs, (label for _, label in pictures), strict=True)
    a, b, truth = np.array(decided).T
    return tuple(100 * float(np.mean(x)) for x in (a == truth, b == truth, a == b))


COLUMNS = {
    "variant": ("variant", "{}"),
    "file_top1": ("top-1 file %", "{:.2f}"),
    "torch_top1": ("top-1 torch %", "{:.2f}"),
    "int8_products": ("int8 products", "{}"),
    "macs": ("GMACs", lambda v: f"{v / 1e9:.3f}"),
    "bytes": ("MB", lambda v: f"{v / 1e6:.2f}"),
    "ms_batch1": ("ms, batch 1", "{:.2f}"),
    "ms_batch16": ("ms, batch 16", "{:.2f}"),
    "peak_bytes": ("peak MB", lambda v: f"{v / 1e6:.0f}"),
}


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the report as text, in the order of ``COLUMNS``."""
    return [form(row[key]) if callable(form) else form.format(row[key]) for key, (_, form) in COLUMNS.items()]


def table(rows: list[dict[str, Any]]) -> Any:
    """The report as a rich table."""
    drawn = Table(title="accuracy and cost of the ONNX files, onnxruntime on this CPU")
    for title, _ in COLUMNS.values():
        drawn.add_column(title, justify="left" if title == "variant" else "right")
    for row in rows:
        drawn.add_row(*cells(row))
    return drawn


def write_report(folder: Path, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """report.json, report.md and report.png (accuracy against latency, a point a variant)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    told = {"command": settings.pop("command"), "machine": machine(), "settings": settings, "rows": rows}
    (folder / "report.json").write_text(json.dumps(told, indent=2) + "\n")
    titles = [title for title, _ in COLUMNS.values()]
    lines = [f"# {settings['model']}, compressed", "", *(f"- {k}: {v}" for k, v in settings.items())]
    lines += [f"- command: `{told['command']}`", f"- machine: {told['machine']}", ""]
    lines += ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    lines += ["", "![accuracy against latency](report.png)", ""]
    (folder / "report.md").write_text("\n".join(lines))
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for row in rows:
        axes.scatter(row["ms_batch1"], row["file_top1"], s=60)
        axes.annotate(row["variant"], (row["ms_batch1"], row["file_top1"]), xytext=(6, 6), textcoords="offset points")
    axes.set(xlabel="latency at batch 1, ms", ylabel="top-1 of the file, %", title=settings["model"])
    axes.margins(0.2)
    axes.grid(alpha=0.3)
    figure.savefig(folder / "report.png", dpi=150)
    plt.close(figure)
