"""``vitalk adapt``: a new voice for a trained AdaSpeech, from some sentences."""

from pathlib import Path
from typing import Annotated

import typer


def adapt(
    voice: Annotated[Path, typer.Option(help="Run folder of a trained AdaSpeech, which stays as it is.")],
    source: Annotated[
        Path, typer.Option("--from", help="About 20 sentences: wavs/ and metadata.csv (id|text) or metadata.jsonl.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The voice's file [RUN/voices/FOLDER.safetensors].")
    ] = None,
    speaker: Annotated[str | None, typer.Option(help="Of the sentences, where several speak.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="A recording whose sound it shall have; a typical sentence without.")
    ] = None,
    aligner: Annotated[
        Path | None, typer.Option(help="model.safetensors of the run's aligner, where the run has no copy.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 2000,
) -> None:
    """Tune what the voice decides in the decoder, and store the few thousand numbers that it comes to.

    A file in the run's folder voices/ is one of its speakers, by the file's name: no path is written anywhere, so that
    runs and voices may move, and every verb that takes the run knows its voices.

    Example: vitalk adapt --voice runs/adaspeech-cpu --from recordings/anna;
    vitalk speak "Hello." --voice runs/adaspeech-cpu --speaker anna -o hello.wav
    """
    from lightning import seed_everything

    from vitalk.systems.adaspeech.adaptation import adapt as learn

    seed_everything(0, verbose=False)  # the same sentences give the same voice
    done = learn(voice, source, output, speaker, reference, steps, aligner=aligner)
    size = done.path.stat().st_size / 1e3
    print(f"{done.path}: {done.adapter.numbers:,} numbers, {size:.0f} KB; {done.tuned:,} weights moved to find them")
    print(f"mel L1 of held-out sentences: {done.before:.3f} before, {done.after:.3f} after {done.sentences} sentences")
    run = voice if voice.is_dir() else voice.parent
    if done.path.parent.resolve() == (run / "voices").resolve():
        print(f'vitalk speak "Hello." --voice {run} --speaker {done.path.stem} -o hello.wav')
    else:
        print(f"move it to {run}/voices to speak with it: vitalk speak --voice {run} --speaker {done.path.stem}")
