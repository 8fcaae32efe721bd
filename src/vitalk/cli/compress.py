"""``vitalk compress``: fewer tokens, fewer bits, an ONNX file, and what that costs."""

import os
import shlex
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vitalk.errors import UserError, nearest
from vitalk.files import staging

DRAWN = 8  # pictures of --visualize
# What says how much a reduction takes away.
STRENGTHS = {"evit": "keep", "tome": "merge", "mctf": "merge", "diffrate": "target-flops"}
TOKENS = [*STRENGTHS]
QUANT = ["minmax", "percentile", "omse", "ema", "ptq4vit", "fq-vit", "noisyquant", "repq-vit", "is-vit", "adalog",
         "dopq-vit", "mptq-vit", "lrp-qvit", "q-hyvit"]  # fmt: skip
SEARCH_BATCH = 32


def compress(
    model: Annotated[str, typer.Argument(help="A timm name, a checkpoint file or hf-hub:NAME.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for model.onnx and the report.")],
    data: Annotated[str | None, typer.Option(help="Pictures: folder, parquet or hf:NAME; CIFAR-10 by default.")] = None,
    tokens: Annotated[str | None, typer.Option(help=f"Token reduction: {', '.join(TOKENS)}.")] = None,
    keep: Annotated[
        float | None, typer.Option(help="evit: share of the patches that stay at each reduction, in (0, 1]; 0.7.")
    ] = None,
    merge: Annotated[
        int | None, typer.Option(min=1, help="tome, mctf: pairs of tokens that each block merges; 8.")
    ] = None,
    target_flops: Annotated[
        float | None,
        typer.Option(
            help="Find the strength: share that may remain of the MACs (of those that --prune leaves), (0, 1]."
        ),
    ] = None,
    target_latency: Annotated[
        float | None, typer.Option(help="Find the strength: milliseconds that one picture may take on this machine.")
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Blocks that reduce, from 0; those of the paper, or spread likewise.")
    ] = None,
    schedule: Annotated[
        Path | None, typer.Option(help="diffrate: a schedule.json that was found before, in place of a search.")
    ] = None,
    search_steps: Annotated[int, typer.Option(min=1, help="diffrate: steps of the search, of 32 pictures each.")] = 200,
    prune: Annotated[
        float | None, typer.Option(help="Share of the MACs that goes with attention heads and hidden units, [0, 1).")
    ] = None,
    visualize: Annotated[
        Path | None, typer.Option(help="Folder for pictures of which patches each token holds, block by block.")
    ] = None,
    quant: Annotated[
        str | None, typer.Option(help=f"Quantization: {', '.join(QUANT)}; vitalk bench quant compares them.")
    ] = None,
    bits: Annotated[str, typer.Option(help="Bits of weights and activations: w8a8, w6a6, w4a4 …")] = "w8a8",
    attention: Annotated[
        str, typer.Option(help="Attention products: float (fast), own (the method's), or a quantizer it knows.")
    ] = "float",
    mixed: Annotated[
        bool, typer.Option(help="mptq-vit, lrp-qvit: layers get bits of their own, on average those of --bits.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=0, help="is-vit, dopq-vit, adalog: steps of reconstruction a block.")
    ] = None,
    pack: Annotated[
        bool, typer.Option(help="Weights of 4 bits or fewer take 4 bits in the file; slower than int8, half as large.")
    ] = False,
    calibration: Annotated[int, typer.Option(min=1, help="Pictures to calibrate with.")] = 32,
    limit: Annotated[int, typer.Option(min=1, help="Pictures to evaluate with, at most.")] = 1000,
    random_weights: Annotated[bool, typer.Option(help="A timm model with random weights: for its speed only.")] = False,
) -> None:
    """Shrink a ViT to an ONNX file that runs without vitalk, and report accuracy and cost before and after.

    Example: vitalk compress runs/eye/model.safetensors --tokens tome --target-flops 0.6 --quant repq-vit -o small
    """
    for name, known, option in ((tokens, TOKENS, "--tokens"), (quant, QUANT, "--quant")):
        if name == "sit" and option == "--tokens":
            raise UserError("sit's slimming modules must be trained: vitalk train sit, then compress what it leaves")
        if name is not None and name not in known:
            raise UserError(f"{option} {name} is not known; choose {', '.join(known)}.{nearest(name, known)}")
    if tokens is None and quant is None and prune is None:
        raise UserError("nothing to do: name --tokens NAME, --quant repq-vit, --prune SHARE or several of them")
    if quant is None and (mixed or pack or steps is not None):
        raise UserError("--mixed, --steps and --pack are about quantization; name --quant")
    if prune is not None and not 0 <= prune < 1:
        raise UserError(f"--prune must be in [0, 1), got {prune}; 0.3 saves three tenths of the MACs")
    strengths = {"keep": keep, "merge": merge}
    _check_strength(tokens, strengths, target_flops, target_latency)
    if schedule is not None and (tokens != "diffrate" or any(v is not None for v in (target_flops, target_latency))):
        raise UserError("--schedule stands in place of a target, and goes with --tokens diffrate")
    if visualize is not None and tokens is None:
        raise UserError("--visualize draws what --tokens does; name a reduction")
    plan = Plan(tokens, next((v for v in strengths.values() if v is not None), None), _numbers(blocks),
                target_flops, target_latency, schedule, search_steps, prune,
                quant and Quantization(quant, bits, attention, mixed, steps, pack), data)  # fmt: skip
    with ExitStack() as stack:
        folder = stack.enter_context(staging(output))
        drawn = stack.enter_context(staging(visualize)) if visualize else None
        _compress(folder, model, data, plan, calibration, limit, random_weights, drawn)
    print(
        f"written: {output}/model.onnx, report.json, report.md, report.png" + (f", {visualize}/" if visualize else "")
    )


def _check_strength(
    tokens: str | None, strengths: dict[str, float | None], flops: float | None, latency: float | None
) -> None:
    """Raises UserError unless at most one thing says how much is taken away, and it suits the reduction."""
    named = {f"--{name}": value for name, value in strengths.items() if value is not None}
    targets = {"--target-flops": flops, "--target-latency": latency}
    named |= {name: value for name, value in targets.items() if value is not None}
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} both say how much to take away; leave one of them")
    for name, value in named.items():
        if tokens is None:
            raise UserError(f"{name} is about tokens; name --tokens {' or '.join(TOKENS)}")
        if name in ("--keep", "--merge") and name != f"--{STRENGTHS[tokens]}":
            raise UserError(f"{name} is not for {tokens}, which takes --{STRENGTHS[tokens]}, or a target")
        if name in ("--keep", "--target-flops") and not 0 < value <= 1:
            raise UserError(f"{name} must be in (0, 1], got {value}")
        if name == "--target-latency" and not value > 0:
            raise UserError(f"{name} must be more than 0 milliseconds, got {value}")


def _numbers(blocks: str | None) -> list[int] | None:
    try:
        return [int(block) for block in blocks.split(",")] if blocks else None
    except ValueError:
        raise UserError(f"--blocks are numbers with commas between them, such as 3,6,9; got {blocks}") from None


@dataclass(frozen=True)
class Quantization:
    """What --quant and the options around it say."""

    name: str
    bits: str
    attention: str
    mixed: bool
    steps: int | None
    pack: bool

    def __str__(self) -> str:
        extra = [*(["mixed"] if self.mixed else []), *([f"{self.steps} steps"] if self.steps is not None else [])]
        return ", ".join([f"{self.name} {self.bits}", f"attention {self.attention}", *extra])


@dataclass(frozen=True)
class Plan:
    """What is to be done: heads and units pruned, tokens reduced by a strength or to a target, all quantized."""

    tokens: str | None
    strength: float | None
    blocks: list[int] | None
    target_flops: float | None
    target_latency: float | None
    schedule: Path | None
    search_steps: int
    prune: float | None
    quant: Quantization | None
    data: str | None


def _compress(
    folder: Path, name: str, data: str | None, plan: Plan, calibration: int, limit: int, random_weights: bool,
    drawn: Path | None,
) -> None:  # fmt: skip
    import numpy as np
    import torch
    from rich.console import Console

    from vitalk.deploy.comparison import measure, table, write_report
    from vitalk.deploy.load import load_model
    from vitalk.nn.quant import parse_bits
    from vitalk.vision.data import split_for_calibration

    if plan.quant:
        parse_bits(plan.quant.bits)
    loaded = load_model(name, pretrained=not random_weights)
    shown, judged = split_for_calibration(data, calibration)
    if plan.quant and len(shown) > 1 and len(set(map(int, shown.labels))) == 1:
        raise UserError(
            f"all {len(shown)} calibration pictures are of one class, and ranges would fit that alone; "
            "give pictures of several"
        )
    judged = judged.select(np.linspace(0, len(judged) - 1, min(limit, len(judged))).astype(int))
    labels = _labels(loaded, judged)
    pictures = torch.stack([torch.from_numpy(loaded.preprocess(shown[i][0])) for i in range(len(shown))])
    settings = {
        "command": shlex.join(["vitalk", *sys.argv[1:]]),
        "model": name,
        "data": str(data or "CIFAR-10"),
        "pictures": len(judged),
        "calibration": len(shown),
    }
    console = Console(stderr=True)
    rows = []
    for variant, model in _variants(loaded, pictures, plan, folder, settings, console).items():
        console.print(f"[bold]{variant}[/bold]")
        pack = plan.quant is not None and plan.quant.pack
        found = measure(model, folder / f"{variant}.onnx", loaded.preprocess, labels, judged, pack)
        rows.append({"variant": variant, **found})
        if drawn and variant.endswith(plan.tokens):
            _draw(model, loaded.preprocess, judged, drawn)
    last = rows[-1]["variant"]
    os.replace(folder / f"{last}.onnx", folder / "model.onnx")
    for row in rows[:-1]:
        (folder / f"{row['variant']}.onnx").unlink()
    write_report(folder, settings, rows)
    Console().print(table(rows))


def _labels(loaded: Any, judged: Any) -> list[str]:
    classes = loaded.model.num_classes
    if len(judged.classes) > classes or int(judged.labels.max()) >= classes:
        raise UserError(
            f"the model knows {classes} classes, the data has {len(judged.classes)}; "
            "train it on them first (vitalk train) or name matching data with --data"
        )
    return loaded.labels or (judged.classes if len(judged.classes) == classes else [str(i) for i in range(classes)])


def _variants(
    loaded: Any, pictures: Any, plan: Plan, folder: Path, settings: dict[str, Any], console: Any
) -> dict[str, Any]:
    """The models by name: float, reduced, quantized, both; ``settings`` is told what was done."""
    from vitalk.nn.quant import parse_bits
    from vitalk.quantization import quantize
    from vitalk.systems.dimap import slim

    found, current = {"float": loaded.model}, []

    def quantized(model: Any) -> Any:
        how = plan.quant
        return quantize(
            how.name, model, pictures, parse_bits(how.bits), None if how.attention == "own" else how.attention,
            steps=how.steps, mixed=how.mixed, progress=True,
        )  # fmt: skip

    if plan.prune is not None:
        current.append("slim")
        found["slim"] = loaded.model = slim(loaded.model, plan.prune, pictures[:1])
        settings["pruning"] = f"heads and hidden units by DIMAP's scores, {plan.prune:.1%} of the MACs"
    if plan.tokens:
        finish = quantized if plan.quant else lambda model: model
        current.append(plan.tokens)
        with console.status(f"reducing tokens by {plan.tokens}"):
            found["-".join(current)] = _reduced(loaded, pictures[:1], plan, finish, folder, settings)
    if plan.quant:
        for name, base in list(found.items()):
            found[plan.quant.bits if name == "float" else f"{name}-{plan.quant.bits}"] = quantized(base)
        settings["quantization"] = str(plan.quant)
    return found


def _reduced(loaded: Any, image: Any, plan: Plan, finish: Any, folder: Path, settings: dict[str, Any]) -> Any:
    from vitalk.reducers import REDUCERS, file_latency, macs_share, meet, scheduled, tokens_by_block

    reducer, strength = REDUCERS[plan.tokens], plan.strength
    share = macs_share(loaded.model, image)
    if plan.target_flops is not None and STRENGTHS[plan.tokens] == "target-flops":
        strength = plan.target_flops
    elif plan.target_flops is not None:
        strength = meet(reducer, loaded.model, plan.blocks, share, plan.target_flops)
    elif plan.target_latency is not None:
        cost = file_latency(loaded, finish, folder)
        strength = meet(reducer, loaded.model, plan.blocks, cost, plan.target_latency)
    strength = reducer.default if strength is None else strength
    if plan.schedule is not None:
        reduced = scheduled(loaded.model, plan.schedule)
    elif reducer.learn is not None:
        reduced = reducer.learn(loaded.model, strength, _batches(loaded, plan), plan.search_steps)
        reduced.schedule.save(folder / "schedule.json")
    else:
        reduced = reducer.make(loaded.model, strength, plan.blocks)
    settings["tokens"] = f"{plan.tokens}, {STRENGTHS[plan.tokens]} {strength:g}, {share(reduced):.1%} of the MACs"
    settings["tokens behind each block"] = tokens_by_block(reduced, image)
    return reduced


def _batches(loaded: Any, plan: Plan) -> Any:
    """Labelled training pictures for a search, as the model reads them: a loader of (images, labels)."""
    import torch
    from torch.utils.data import DataLoader

    from vitalk.vision.data import open_splits

    pictures = open_splits(plan.data)[0].with_transform(lambda picture: torch.from_numpy(loaded.preprocess(picture)))
    return DataLoader(pictures, SEARCH_BATCH, shuffle=True, drop_last=len(pictures) > SEARCH_BATCH)


def _draw(trunk: Any, preprocess: Any, judged: Any, folder: Path) -> None:
    """One PNG for each of the first pictures: the patches that each token holds."""
    import torch

    from vitalk.vision.drawing import draw_reduction

    for i in range(min(DRAWN, len(judged))):
        picture, _ = judged[i]
        draw_reduction(trunk, torch.from_numpy(preprocess(picture)), preprocess.seen(picture), folder / f"{i}.png")
