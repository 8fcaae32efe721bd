"""DeiT-S/224 on a CPU: torch, onnxruntime and OpenVINO with and without vitalk's int8 and token reduction."""

import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch

from vitalk.deploy.contest import MODEL, SIZE, in_own_process
from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.preprocess import Preprocess
from vitalk.files import write_whole
from vitalk.measurement import machine
from vitalk.systems.evit import evit
from vitalk.systems.repq_vit import repq_vit
from vitalk.vision.cost import count, latencies


def prepare(folder: Path, keep: float) -> tuple[list[dict[str, Any]], float]:
    """The rows: name, engine, file, MACs an image, arithmetic, and whether it is ours; seconds of a calibration."""
    torch.manual_seed(0)
    vit = timm.create_model(MODEL).eval()
    pictures = torch.randn(32, 3, SIZE, SIZE)
    preprocess = Preprocess.from_timm_cfg(vit.pretrained_cfg)
    fewer = evit(timm.create_model(MODEL).eval(), keep)
    fewer.load_state_dict(vit.state_dict())
    start = time.perf_counter()
    quantized = repq_vit(vit, pictures, 8, 8, attention="float")
    calibration = time.perf_counter() - start
    ours = {
        "fp32": vit,
        "int8": quantized,
        "EViT": fewer,
        "EViT + int8": repq_vit(fewer, pictures, 8, 8, attention="float"),
    }
    labels = [str(i) for i in range(1000)]
    files = {n: export_onnx(m, folder / f"{n}.onnx", preprocess, labels) for n, m in ours.items()}
    plain = folder / "plain.onnx"  # what a user without vitalk has
    torch.onnx.export(
        vit, (pictures[:2],), plain, dynamo=True, verbose=False, external_data=False,
        input_names=["image"], output_names=["logits"], dynamic_shapes=[{0: torch.export.Dim("batch")}],
    )  # fmt: skip
    ort_int8, ov_int8 = _peer_int8(plain, folder, pictures.numpy())
    whole, reduced = count(vit, pictures[:1]).macs, count(fewer, pictures[:1]).macs
    rows = [
        ("timm eager fp32", "timm eager", None, whole, "fp32", False),
        ("torch.compile fp32", "torch.compile", None, whole, "fp32", False),
        ("onnxruntime fp32", "onnxruntime", plain, whole, "fp32", False),
        ("onnxruntime static int8", "onnxruntime", ort_int8, whole, "int8", False),
        ("OpenVINO default", "openvino", plain, whole, "bf16", False),
        ("OpenVINO int8 (NNCF)", "openvino", ov_int8, whole, "int8", False),
    ]
    for name, macs in (("int8", whole), ("EViT", reduced), ("EViT + int8", reduced)):
        arithmetic = "int8" if "int8" in name else "fp32"
        for engine in ("onnxruntime", "openvino"):
            # by default OpenVINO computes in bfloat16 what is not quantized
            kind = "bf16" if engine == "openvino" and arithmetic == "fp32" else arithmetic
            rows.append((f"vitalk {name}, {engine}", engine, files[name], macs, kind, True))
    keys = ("name", "engine", "file", "macs", "arithmetic", "ours")
    return [dict(zip(keys, row, strict=True)) for row in rows], calibration


def reducer_overhead() -> dict[int, float]:
    """Batch -> what reducers in all blocks add to DeiT-S at keep rate 1, where they have nothing to do: 0.01 is 1 %."""
    plain = timm.create_model(MODEL).eval()
    reduced = evit(timm.create_model(MODEL).eval(), 1.0, range(len(plain.blocks)))
    found = {}
    with torch.inference_mode():
        for batch in (1, 16):
            x = torch.randn(batch, 3, SIZE, SIZE)
            taken = latencies(
                {"plain": lambda x=x: plain(x), "reduced": lambda x=x: reduced(x)}, repeats=40, seconds=30
            )
            found[batch] = taken["reduced"] / taken["plain"] - 1
    return found


def _peer_int8(plain: Path, folder: Path, pictures: Any) -> tuple[Path, Path]:
    """The int8 files of onnxruntime's own static quantization and of OpenVINO's (NNCF), on the same pictures."""
    import nncf
    import openvino
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter({"image": pictures[i : i + 4]} for i in range(0, len(pictures), 4))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    prepared, ort_int8, ov_int8 = (folder / f"{name}" for name in ("prepared.onnx", "ort.onnx", "ov.xml"))
    quant_pre_process(plain, prepared)
    quantize_static(
        prepared, ort_int8, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    dataset = nncf.Dataset([pictures[i : i + 4] for i in range(0, len(pictures), 4)])
    quantized = nncf.quantize(
        openvino.Core().read_model(plain), dataset, model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED, subset_size=8,
    )  # fmt: skip
    openvino.save_model(quantized, ov_int8)
    return ort_int8, ov_int8


def contest(rows: list[dict[str, Any]], rounds: int, progress: Any) -> dict[str, dict[int, float]]:
    """Median over the rounds: row -> {batch: images a second}; ``peak-…`` -> {1: MACs a second}."""
    runs = [(f"peak-{kind}", f"peak-{kind}", None, []) for kind in ("fp32", "bf16", "int8")]
    runs += [(row["name"], row["engine"], row["file"], [1, 16]) for row in rows]
    task = progress.add_task("measuring", total=rounds * len(runs))
    seen: dict[str, list[dict[int, float]]] = {}
    for _ in range(rounds):
        for name, engine, file, batches in runs:
            progress.update(task, description=name)
            seen.setdefault(name, []).append(in_own_process(engine, file, batches))
            progress.advance(task)
    return {name: {b: statistics.median(r[b] for r in found) for b in found[0]} for name, found in seen.items()}


def summarize(rows: list[dict[str, Any]], measured: dict[str, dict[int, float]], keep: float) -> dict[str, Any]:
    """Ratios to timm eager, to the best peer and to the matrix product peak of the same arithmetic."""
    table = []
    for batch in (1, 16):
        eager = measured["timm eager fp32"][batch]
        best = max(measured[row["name"]][batch] for row in rows if not row["ours"])
        for row in rows:
            rate = measured[row["name"]][batch]
            peak = measured[f"peak-{row['arithmetic']}"][1]
            table.append(
                {
                    "name": row["name"], "batch": batch, "images_per_second": rate, "ratio_to_eager": rate / eager,
                    "ratio_to_best_peer": rate / best, "peak_fraction": rate * row["macs"] / peak,
                    "arithmetic": row["arithmetic"],
                }
            )  # fmt: skip
    peaks = {kind: measured[f"peak-{kind}"][1] for kind in ("fp32", "bf16", "int8")}
    command = shlex.join(["vitalk", *sys.argv[1:]])
    return {"machine": machine(), "command": command, "keep_rate": keep, "peak_macs_per_second": peaks, "rows": table}


def write(report: dict[str, Any], output: Path) -> None:
    """The report as JSON and, beside it, as Markdown; neither is ever half-written."""
    lines = [f"DeiT-S/224, random weights; {report['machine']}; `{report['command']}`", ""]
    lines += ["| | batch | images/s | x timm eager | x best peer | of matmul peak |", "|---|---|---|---|---|---|"]
    for r in report["rows"]:
        lines.append(
            f"| {r['name']} | {r['batch']} | {r['images_per_second']:.1f} | {r['ratio_to_eager']:.2f} "
            f"| {r['ratio_to_best_peer']:.2f} | {100 * r['peak_fraction']:.0f} % {r['arithmetic']} |"
        )
    overhead = ", ".join(f"{100 * v:+.1f} % at batch {batch}" for batch, v in report["reducer_overhead"].items())
    lines += ["", f"Calibration of RepQ-ViT on 32 pictures: {report['calibration_seconds']:.1f} s. "
              f"Reducers in all blocks at keep rate 1: {overhead}."]  # fmt: skip
    for path, text in ((output, json.dumps(report, indent=2)), (output.with_suffix(".md"), "\n".join(lines))):
        write_whole(path, text + "\n")
