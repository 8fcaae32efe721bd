"""``vitalk compress``: fewer tokens, fewer bits, an ONNX file, and what that costs."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vitalk.errors import UserError, nearest
from vitalk.files import staging

TOKENS, QUANT = ["evit"], ["repq-vit"]


def compress(
    model: Annotated[str, typer.Argument(help="A timm name, a checkpoint file or hf-hub:NAME.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for model.onnx and the report.")],
    data: Annotated[str | None, typer.Option(help="Pictures: folder, parquet or hf:NAME; CIFAR-10 by default.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Token reduction: evit.")] = None,
    keep: Annotated[float, typer.Option(help="Share of the patches that stay at each reduction, in (0, 1].")] = 0.7,
    blocks: Annotated[
        str | None, typer.Option(help="Blocks that reduce, from 0; 3,6,9 of 12, else spread likewise.")
    ] = None,
    quant: Annotated[str | None, typer.Option(help="Quantization: repq-vit.")] = None,
    bits: Annotated[str, typer.Option(help="Bits of weights and activations: w8a8, w6a6, w4a4 …")] = "w8a8",
    attention: Annotated[
        str, typer.Option(help="Attention products: float (fast) or log-sqrt2 (the paper's).")
    ] = "float",
    calibration: Annotated[int, typer.Option(min=1, help="Pictures to calibrate with.")] = 32,
    limit: Annotated[int, typer.Option(min=1, help="Pictures to evaluate with, at most.")] = 1000,
    random_weights: Annotated[bool, typer.Option(help="A timm model with random weights: for its speed only.")] = False,
) -> None:
    """Shrink a ViT to an ONNX file that runs without vitalk, and report accuracy and cost before and after.

    Example: vitalk compress runs/eye/model.safetensors --tokens evit --keep 0.7 --quant repq-vit -o small
    """
    for name, known, option in ((tokens, TOKENS, "--tokens"), (quant, QUANT, "--quant")):
        if name is not None and name not in known:
            raise UserError(f"{option} {name} is not known; choose {', '.join(known)}.{nearest(name, known)}")
    if tokens is None and quant is None:
        raise UserError("nothing to do: name --tokens evit, --quant repq-vit or both")
    if not 0 < keep <= 1:
        raise UserError(f"--keep must be in (0, 1], got {keep}")
    with staging(output) as folder:
        _compress(
            folder,
            model,
            data,
            tokens and (keep, blocks),
            quant and (bits, attention),
            calibration,
            limit,
            random_weights,
        )
    print(f"written: {output}/model.onnx, report.json, report.md, report.png")


def _compress(
    folder: Path, name: str, data: str | None, tokens: tuple[float, str | None] | None, quant: tuple[str, str] | None,
    calibration: int, limit: int, random_weights: bool,
) -> None:  # fmt: skip
    import numpy as np
    import torch
    from rich.console import Console

    from vitalk.deploy.comparison import measure, table, write_report
    from vitalk.deploy.load import load_model
    from vitalk.systems.repq_vit import parse_bits
    from vitalk.vision.data import split_for_calibration

    if quant:
        parse_bits(quant[0])
    loaded = load_model(name, pretrained=not random_weights)
    shown, judged = split_for_calibration(data, calibration)
    judged = judged.select(np.linspace(0, len(judged) - 1, min(limit, len(judged))).astype(int))
    classes = loaded.model.num_classes
    if len(judged.classes) > classes or int(judged.labels.max()) >= classes:
        raise UserError(
            f"the model knows {classes} classes, the data has {len(judged.classes)}; "
            "train it on them first (vitalk train) or name matching data with --data"
        )
    labels = loaded.labels or (judged.classes if len(judged.classes) == classes else [str(i) for i in range(classes)])
    pictures = torch.stack([torch.from_numpy(loaded.preprocess(shown[i][0])) for i in range(len(shown))])
    console = Console(stderr=True)
    rows = []
    for variant, model in _variants(loaded.model, pictures, tokens, quant).items():
        console.print(f"[bold]{variant}[/bold]")
        rows.append(
            {"variant": variant, **measure(model, folder / f"{variant}.onnx", loaded.preprocess, labels, judged)}
        )
    last = rows[-1]["variant"]
    os.replace(folder / f"{last}.onnx", folder / "model.onnx")
    for row in rows[:-1]:
        (folder / f"{row['variant']}.onnx").unlink()
    settings = {
        "command": shlex.join(["vitalk", *sys.argv[1:]]),
        "model": name,
        "data": str(data or "CIFAR-10"),
        "pictures": len(judged),
        "calibration": len(shown),
    }
    if tokens:
        settings["tokens"] = f"evit, keep {tokens[0]}"
    if quant:
        settings["quantization"] = f"repq-vit {quant[0]}, attention {quant[1]}"
    write_report(folder, settings, rows)
    Console().print(table(rows))


def _variants(
    model: Any, pictures: Any, tokens: tuple[float, str | None] | None, quant: tuple[str, str] | None
) -> dict:
    import copy

    from vitalk.systems.evit import evit
    from vitalk.systems.repq_vit import parse_bits, repq_vit

    found = {"float": model}
    if tokens:
        keep, where = tokens
        depth = len(getattr(model, "blocks", [])) or 12
        try:
            chosen = [int(b) for b in where.split(",")] if where else [depth * i // 4 for i in (1, 2, 3)]
        except ValueError:
            raise UserError(f"--blocks are numbers with commas between them, such as 3,6,9; got {where}") from None
        found["evit"] = evit(copy.deepcopy(model), keep, chosen).eval()
    if quant:
        weight, act = parse_bits(quant[0])
        for name, base in list(found.items()):
            joined = quant[0] if name == "float" else f"{name}-{quant[0]}"
            found[joined] = repq_vit(base, pictures, weight, act, attention=quant[1], progress=True)
    return found
