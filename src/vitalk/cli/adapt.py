"""``vitalk adapt``: a new voice for a trained AdaSpeech or USAT, from some sentences."""

from pathlib import Path
from typing import Annotated

import typer

from vitalk.errors import UserError


def adapt(
    voice: Annotated[Path, typer.Option(help="Run folder of a trained AdaSpeech or USAT, which stays as it is.")],
    source: Annotated[
        Path, typer.Option("--from", help="About 20 sentences: wavs/ and metadata.csv (id|text) or metadata.jsonl.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The voice's file [RUN/voices/FOLDER.safetensors].")
    ] = None,
    speaker: Annotated[str | None, typer.Option(help="Of the sentences, where several speak.")] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="For AdaSpeech: a recording whose sound it shall have; a typical sentence without."),
    ] = None,
    aligner: Annotated[
        Path | None,
        typer.Option(help="For AdaSpeech: model.safetensors of the run's aligner, where the run has no copy."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of training [2000 for AdaSpeech, 1500 for USAT].")
    ] = None,
) -> None:
    """Tune the few weights that make a voice, and store them: in AdaSpeech's decoder, or in adapters beside USAT.

    A file in the run's folder voices/ is one of its speakers, by the file's name: no path is written anywhere, so that
    runs and voices may move, and every verb that takes the run knows its voices.

    Example: vitalk adapt --voice runs/adaspeech-cpu --from recordings/anna;
    vitalk speak "Hello." --voice runs/adaspeech-cpu --speaker anna -o hello.wav
    """
    from lightning import seed_everything

    from vitalk.trained import slug_of

    seed_everything(0, verbose=False)  # the same sentences give the same voice
    run = voice if voice.is_dir() else voice.parent
    if slug_of(voice / "model.safetensors" if voice.is_dir() else voice) == "usat":
        if reference is not None or aligner is not None:
            wrong = "--reference" if reference is not None else "--aligner"
            raise UserError(f"{voice} is a USAT, which adapts without {wrong}; leave it out")
        made = _usat(voice, source, output, speaker, steps or 1500)
    else:
        made = _adaspeech(voice, source, output, speaker, reference, aligner, steps or 2000)
    if made.parent.resolve() == (run / "voices").resolve():
        print(f'vitalk speak "Hello." --voice {run} --speaker {made.stem} -o hello.wav')
    else:
        print(f"move it to {run}/voices to speak with it: vitalk speak --voice {run} --speaker {made.stem}")


def _adaspeech(
    voice: Path, source: Path, output: Path | None, speaker: str | None, reference: Path | None, aligner: Path | None,
    steps: int,
) -> Path:  # fmt: skip
    from vitalk.systems.adaspeech.adaptation import adapt as learn

    done = learn(voice, source, output, speaker, reference, steps, aligner=aligner)
    size = done.path.stat().st_size / 1e3
    print(f"{done.path}: {done.adapter.numbers:,} numbers, {size:.0f} KB; {done.tuned:,} weights moved to find them")
    print(f"mel L1 of held-out sentences: {done.before:.3f} before, {done.after:.3f} after {done.sentences} sentences")
    return done.path


def _usat(voice: Path, source: Path, output: Path | None, speaker: str | None, steps: int) -> Path:
    from vitalk.systems.usat.adaptation import adapt as learn

    done = learn(voice, source, output, speaker, steps)
    size, share = done.path.stat().st_size / 1e3, done.voice.numbers / done.total
    print(f"{done.path}: {done.voice.numbers:,} numbers, {size:.0f} KB, {share:.1%} of the model's weights")
    print(f"loss of held-out sentences: {done.before:.3f} before, {done.after:.3f} after {done.sentences} sentences")
    return done.path
