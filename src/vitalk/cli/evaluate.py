"""``vitalk eval speech``: how well recordings, or voices, say their texts, and how they sound."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitalk.errors import UserError

if TYPE_CHECKING:
    from vitalk.speech.judge.report import Report

app = typer.Typer(help="Evaluate speech with automatic judges.", no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Evaluate speech with automatic judges."""


@app.command()
def speech(
    folder: Annotated[
        Path | None, typer.Argument(help="Recordings, or wavs/ with them, and metadata.csv or metadata.jsonl.")
    ] = None,
    voice: Annotated[
        list[str] | None,
        typer.Option(help="In place of a folder, a voice's name or file, a run folder, kokoro or espeak; repeatable."),
    ] = None,
    vocoder: Annotated[
        Path | None, typer.Option(help="With run folders as --voice: that of their vocoder; Griffin-Lim without.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="Another metadata.csv (id|text) or metadata.jsonl; for voices also .txt, a sentence a line."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Folder of recordings of the same texts under the same names.")
    ] = None,
    speaker: Annotated[
        Path | None, typer.Option(help="The voice they should have: a recording or a folder of them.")
    ] = None,
    lang: Annotated[str, typer.Option(help="Language of the texts: en, es, zh …")] = "en",
    normaliser: Annotated[
        str,
        typer.Option(help="Before words are compared: seed (punctuation, case) or whisper (numbers, spelling too)."),
    ] = "seed",
    recogniser: Annotated[str, typer.Option(help="Whisper: tiny, base, small … or a CTranslate2 folder.")] = "base",
    limit: Annotated[int | None, typer.Option(min=1, help="Recordings or sentences, at most, spread evenly.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for report.json, report.md, the plots, and what voices said."),
    ] = None,
    plots: Annotated[int, typer.Option(min=0, help="Utterances to draw, those with most errors first.")] = 0,
) -> None:
    """Word errors, speaker similarity, DNSMOS and, with references, pitch, voicing and mel-cepstral distortion.

    Voices say 100 everyday English sentences, or those of --text, and are also timed; several stand side by side.
    Needs the extra eval, and bench for the voice kokoro. The judges come with them and need no network.

    Examples: vitalk eval speech recordings --speaker prompt.wav --limit 100 -o report;
    vitalk eval speech --voice vitalk --voice kokoro -o report
    """
    if folder is not None and voice:
        raise UserError(f"there is a folder {folder} and a --voice {voice[0]}; give one of them")
    if folder is None and not voice:
        raise UserError("say what to judge: a folder of recordings, or --voice with a voice's name or file")
    if plots and output is None:
        raise UserError("--plots needs a folder for the pictures; name it with -o")
    from vitalk.speech.judge.recogniser import NORMALISERS, Recogniser

    if normaliser not in NORMALISERS:
        raise UserError(f"--normaliser is one of {', '.join(NORMALISERS)}, got {normaliser}")
    how = {
        "text": text, "reference": reference, "speaker": speaker, "lang": lang, "normaliser": normaliser,
        "limit": limit, "recogniser": None if recogniser == "base" else Recogniser(recogniser),
    }  # fmt: skip
    if voice:
        from vitalk.speech.judge.voices import evaluate_voices
        from vitalk.trained import open_voice

        opened = partial(open_voice, vocoder=vocoder)
        report, written = evaluate_voices(voice, output=output, plots=plots, opened=opened, **how)
    else:
        from vitalk.speech.judge.evaluate import evaluate as judge

        report = judge(folder, **how)
        written = [] if output is None else report.save(output, plots)
    show(report)
    if written:
        print(f"written: {output}/{', '.join(written)}")


def show(report: "Report") -> None:
    """Print the means, the three utterances with most errors, and the notes."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    table = Table(*report.header(), box=None, pad_edge=False)
    for line in report.table():
        table.add_row(*line)
    console.print(table)
    for row in (report.rows[i] for i in report.worst(3)):
        if row.get("wer"):
            console.print(
                f"\n{row['name']}, WER {100 * row['wer']:.0f} %\n  text  {row['text']}\n  heard {row['heard']}"
            )
    for note in report.notes:
        console.print(f"note: {note}")
