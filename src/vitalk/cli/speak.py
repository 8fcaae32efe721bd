"""`vitalk speak`: text to speech without torch."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitalk.errors import UserError

if TYPE_CHECKING:
    from vitalk.speech.audio import Audio
    from vitalk.speech.voice import Voice


def speak(
    text: Annotated[str | None, typer.Argument(help="What to say; - or nothing reads standard input.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="A file with the text, UTF-8.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Sound file, or - for raw samples.")] = None,
    voice: Annotated[
        str | None, typer.Option(help="A voice's name or file (`vitalk voices` lists them), or a run folder.")
    ] = None,
    vocoder: Annotated[
        Path | None, typer.Option(help="With a run folder: that of its vocoder; Griffin-Lim without.")
    ] = None,
    speaker: Annotated[str | None, typer.Option(help="One of the voice's speakers.")] = None,
    speed: Annotated[float, typer.Option(help="Factor on the voice's own speed.")] = 1.0,
    pitch: Annotated[float, typer.Option(help="Factor on the voice's own pitch.")] = 1.0,
    energy: Annotated[float, typer.Option(help="Factor on the voice's own energy.")] = 1.0,
    lang: Annotated[str | None, typer.Option(help="espeak language of the text, e.g. en-us.")] = None,
    lexicon: Annotated[Path | None, typer.Option(help="Words and their phonemes: JSON, or two columns.")] = None,
    ssml: Annotated[bool, typer.Option("--ssml", help="The text is SSML.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Write each sentence as soon as it is ready.")] = False,
) -> None:
    """Say a text: write a sound file (WAV, FLAC, Ogg Opus, MP3), or raw samples for a player.

    Raw samples are 16 bit, mono, little-endian, at the rate that is told on stderr.

    Examples: vitalk speak "Hello." -o hello.wav; cat book.txt | vitalk speak - --stream -o - | aplay -r 24000 -f S16_LE
    """
    from vitalk.speech.audio import save_parts
    from vitalk.speech.voice import join

    words = _text(text, file)
    if output is None and sys.stdout.isatty():
        raise UserError("say where the sound goes: -o hello.wav, or -o - for raw samples to pipe into a player")
    raw = output is None or str(output) == "-"
    if stream and not raw:
        raise UserError("--stream writes raw samples; leave -o out, or give -o -")
    ready = _voice(voice, vocoder)
    ready.lexicon = lexicon
    parts = ready.stream(words, speed, pitch, energy, ssml, speaker, lang)
    if raw:
        print(f"16 bit, mono, {ready.rate} Hz", file=sys.stderr)
        for part in parts if stream else [join(list(parts))]:
            sys.stdout.buffer.write((part.samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
            sys.stdout.buffer.flush()
        return
    print(f"{output}: {save_parts(_shown(parts), output):.1f} s")


def _voice(voice: str | None, vocoder: Path | None) -> "Voice":
    from vitalk.speech.voice import Voice

    if voice is not None and (Path(voice).is_dir() or voice.endswith(".safetensors")):
        from vitalk.trained import trained_voice

        return trained_voice(voice, vocoder)
    if vocoder is not None:
        raise UserError("--vocoder goes with a run folder as --voice; voice files have their own")
    return Voice.load(voice)


def _text(text: str | None, file: Path | None) -> str:
    if file is not None:
        if text is not None:
            raise UserError("there is a text and a --file; give one of them")
        if not file.is_file():
            raise UserError(f"there is no text at {file}")
        content = file.read_bytes()
    elif text is not None and text != "-":
        return text
    elif sys.stdin.isatty():
        raise UserError('say what to say: vitalk speak "Hello." -o hello.wav')
    else:
        content = sys.stdin.buffer.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError("the text is not UTF-8; convert it first") from None


def _shown(parts: Iterator["Audio"]) -> Iterator["Audio"]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    said = 0.0
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}")
    with Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("speaking")
        for count, part in enumerate(parts, 1):
            said += part.seconds
            bar.update(task, description=f"{count} sentences, {said:.0f} s of speech")
            yield part
