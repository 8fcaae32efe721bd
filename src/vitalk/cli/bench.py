"""``vitalk bench``: this package against its peers, in one run, on this machine."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vitalk.errors import UserError

app = typer.Typer(help="Measure speed against peers, side by side on this machine.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure speed against peers, side by side on this machine."""


@app.command()
def vision(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the JSON goes; a .md is written beside.")
    ] = Path("results/bench_vision.json"),
    rounds: Annotated[int, typer.Option(min=1, help="Times that all rows are run, in turns.")] = 3,
    keep: Annotated[float, typer.Option(help="Keep rate of the EViT rows.")] = 0.7,
) -> None:
    """DeiT-S/224 with random weights: images a second of torch, onnxruntime, OpenVINO and vitalk.

    Needs the extras train and bench. Run nothing else meanwhile.

    Example: vitalk bench vision --rounds 3
    """
    import tempfile

    from rich.console import Console
    from rich.progress import Progress

    from vitalk.benchmarks.vision import contest, prepare, reducer_overhead, summarize, write

    output = _json_path(output)
    with tempfile.TemporaryDirectory() as folder:
        with Console(stderr=True).status("exporting and calibrating the models"):
            rows, calibration = prepare(Path(folder), keep)
        with Progress(console=Console(stderr=True)) as progress:
            measured = contest(rows, rounds, progress)
    with Console(stderr=True).status("measuring what a reducer at keep rate 1 costs"):
        overhead = reducer_overhead()
    report = summarize(rows, measured, keep) | {"calibration_seconds": calibration, "reducer_overhead": overhead}
    write(report, output)
    Console().print(Path(output).with_suffix(".md").read_text())


@app.command()
def speech(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the JSON goes; a .md is written beside.")
    ] = Path("results/bench_speech.json"),
    voice: Annotated[str | None, typer.Option(help="Our voice, a name or file; the embedded one if left out.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that all voices are timed, in turns.")] = 3,
    limit: Annotated[int | None, typer.Option(min=1, help="Sentences to judge, of 100, spread evenly.")] = None,
) -> None:
    """Our voice, Kokoro-82M int8 and espeak-ng: speed, time to first audio, cold start, memory, size, WER, DNSMOS.

    Needs the extras eval and bench. Run nothing else meanwhile.

    Example: vitalk bench speech --rounds 5
    """
    from vitalk.deploy.speech_contest import compare

    _keep(output, lambda: compare(voice, rounds, limit))


@app.command()
def backbones(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the JSON goes; a .md is written beside.")
    ] = Path("results/bench_backbones.json"),
    only: Annotated[list[str] | None, typer.Option(help="A system, e.g. volo; may be given again.")] = None,
    repeats: Annotated[int, typer.Option(min=2, help="Steps that are timed of each, in turns.")] = 7,
) -> None:
    """A training step of each backbone as `vitalk train` takes it, against the pattern of timm or of the release.

    Needs the extra train. Run nothing else meanwhile.

    Example: vitalk bench backbones --only volo --only tic
    """
    from vitalk.benchmarks.backbones import CONTESTS, contest

    if unknown := [name for name in only or [] if name not in CONTESTS]:
        raise UserError(f"--only {unknown[0]} is not measured; choose {', '.join(CONTESTS)}")
    _keep(output, lambda: contest(only or list(CONTESTS), repeats))


@app.command()
def reduce(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the JSON goes; a .md and a .png are written beside.")
    ] = Path("results/bench_reduce.json"),
    minutes: Annotated[
        float, typer.Option(min=0.1, max=1440, help="Time to spend; more makes the figures firmer.")
    ] = 20.0,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data sets [default: $VITALK_DATA or the user's cache].")
    ] = None,
) -> None:
    """Every token reducer on DeiT-S (speed) and on the embedded classifier (accuracy): one table, one plot.

    Needs the extra train. Run nothing else meanwhile.

    Example: vitalk bench reduce --minutes 30
    """
    from vitalk.benchmarks.reduce import compare, draw
    from vitalk.files import data_root

    if data is not None and not data.is_dir():
        raise UserError(f"--data: there is no folder {data}; name the one that holds images/")
    _keep(output, lambda: compare(minutes, data or data_root()), draw)


@app.command()
def quant(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the JSON goes; a .md and a .png are written beside.")
    ] = Path("results/bench_quant.json"),
    minutes: Annotated[
        float, typer.Option(min=0.1, max=1440, help="Time to spend; more makes the figures firmer.")
    ] = 30.0,
    model: Annotated[str, typer.Option(help="What is quantized: trained on CIFAR-10, a name or checkpoint.")] = (
        "vitalk_eye"
    ),
    only: Annotated[list[str] | None, typer.Option(help="A method, e.g. adalog; may be given again.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data sets [default: $VITALK_DATA or the user's cache].")
    ] = None,
) -> None:
    """Every quantization method at W8A8, W6A6, W4A4, W3A3 and mixed precision: accuracy, bytes, real integers.

    Needs the extra train. Run nothing else meanwhile.

    Example: vitalk bench quant --minutes 60 --only repq-vit --only adalog
    """
    from vitalk.benchmarks.quant import compare, draw_plot
    from vitalk.files import data_root
    from vitalk.quantization import METHODS

    if unknown := [name for name in only or [] if name not in METHODS]:
        raise UserError(f"--only {unknown[0]} is not known; choose {', '.join(METHODS)}")
    if data is not None and not data.is_dir():
        raise UserError(f"--data: there is no folder {data}; name the one that holds images/")
    _keep(output, lambda: compare(minutes, data or data_root(), model, only or list(METHODS)), draw_plot)


@app.command()
def acoustic(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the JSON goes; a .md is written beside.")
    ] = Path("results/bench_acoustic.json"),
    minutes: Annotated[float, typer.Option(min=0.5, max=10_000, help="Of training, for each system.")] = 30.0,
    only: Annotated[list[str] | None, typer.Option(help="A system, e.g. portaspeech; may be given again.")] = None,
    speaker: Annotated[str, typer.Option(help="Of the corpus.")] = "jm_kumo",
    aligner: Annotated[Path, typer.Option(help="Run folder of an aligner of that speaker.")] = Path(
        "runs/voice-aligner"
    ),
    vocoder: Annotated[Path, typer.Option(help="Run folder of a vocoder.")] = Path("runs/voice-vocoder"),
    runs: Annotated[Path, typer.Option(help="Where the trainings go; those that are done are not repeated.")] = Path(
        "runs/acoustic"
    ),
    sentences: Annotated[int, typer.Option(min=2, help="Held-out sentences to judge.")] = 40,
    data: Annotated[
        Path | None, typer.Option(help="Speech corpus [default: kokoro_en of $VITALK_DATA or the user's cache].")
    ] = None,
) -> None:
    """Acoustic text-to-speech systems, trained for the same time and judged in one run: WER, similarity, cost.

    Needs the extras train and eval. Run nothing else meanwhile.

    Example: vitalk bench acoustic --minutes 60 --only fastspeech2 --only portaspeech
    """
    from vitalk.benchmarks.acoustic import PLANS, Setting, compare
    from vitalk.files import data_root

    if unknown := [name for name in only or [] if name not in PLANS]:
        raise UserError(f"--only {unknown[0]} is not known; choose {', '.join(PLANS)}")
    corpus = data or data_root() / "speech" / "kokoro_en"
    aligner, vocoder = (run / "model.safetensors" if run.is_dir() else run for run in (aligner, vocoder))
    setting = Setting(corpus, speaker, aligner, vocoder, minutes, runs)
    _keep(output, lambda: compare(setting, only or list(PLANS), sentences))


@app.command()
def serve(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the JSON goes; a .md is written beside.")
    ] = Path("results/bench_serve.json"),
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Of load, for each number of workers.")] = 60.0,
    workers: Annotated[list[int] | None, typer.Option(min=1, help="Worker processes; may be given again.")] = None,
    clients: Annotated[int, typer.Option(min=1, max=500, help="That ask at a time.")] = 64,
    soak: Annotated[int, typer.Option(min=1, max=100_000, help="Requests between two looks at the memory.")] = 5000,
) -> None:
    """The server under load: sound a second, time to first audio, memory, killed workers, and unkind clients.

    Starts servers of its own on this machine. Needs the extras serve and bench. Run nothing else meanwhile.

    Example: vitalk bench serve --seconds 60 --workers 1 --workers 2 --workers 4
    """
    try:
        from vitalk.benchmarks.serving import compare
    except ModuleNotFoundError as error:
        raise UserError(f'{error.name} is not installed; run: pip install "vitalk[serve,bench]"') from None
    _keep(output, lambda: compare(seconds, workers or [1, 2, 4], clients, soak))


def _keep(
    output: Path, measure: Callable[[], dict[str, Any]], draw: Callable[[dict[str, Any], Path], None] | None = None
) -> None:
    """Print the record that ``measure`` returns as a table, and write both, and the picture that ``draw`` makes.

    Nothing half-written stays.
    """
    import json

    from vitalk.files import staging
    from vitalk.report import table

    output = _json_path(output)
    with staging(output.parent) as partial:
        record = {"command": shlex.join(["vitalk", *sys.argv[1:]])} | measure()
        drawn = table(record) + "\n"
        (partial / output.name).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (partial / output.with_suffix(".md").name).write_text(drawn, encoding="utf-8")
        if draw is not None:
            draw(record, partial / output.with_suffix(".png").name)
    print(drawn)


def _json_path(output: Path) -> Path:
    output = output.resolve()
    if output.suffix != ".json" or output.is_dir():
        raise UserError(f"-o names the JSON file to write, such as results/{output.stem}.json, got {output}")
    return output
