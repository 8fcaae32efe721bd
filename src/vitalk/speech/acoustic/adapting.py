"""New voices for trained models: what every system that adapts asks of a voice's file and of its sentences."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lightning import LightningModule
from rich.progress import Progress

from vitalk.errors import UserError
from vitalk.experiments import quiet, short_run
from vitalk.speech.corpus import open_corpus


def voice_file(
    model: Path, folder: str | Path, output: str | Path | None, speaker: str | None, speakers: Collection[str]
) -> Path:
    """Where a new voice is kept: ``output``, or voices/FOLDER.safetensors beside the model, of which it is a speaker.

    speaker: names the file in the folder's place. speakers: those that the model has.
    Raises UserError for names that are taken or do not end in .safetensors, and places that cannot be written to: now,
    and not when all is done.
    """
    target = Path(output or model.parent / "voices" / f"{speaker or Path(folder).resolve().name}.safetensors")
    if target.suffix != ".safetensors" or target.stem in speakers:
        raise UserError(
            f"{target} is no name for a new voice: give one that no speaker has and that ends in .safetensors"
        )
    place = next(parent for parent in target.absolute().parents if parent.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise UserError(f"{target} cannot be written to; choose another place with -o")
    return target


def voice_files(model: Path, speakers: Collection[str]) -> list[Path]:
    """The files of new voices beside a model, by name. Raises UserError for names that its own speakers have."""
    files = sorted((model.parent / "voices").glob("*.safetensors"))
    if taken := next((file for file in files if file.stem in speakers), None):
        raise UserError(f"the model has a speaker {taken.stem} of its own; rename {taken}")
    return files


def one_voice(folder: str | Path, speaker: str | None, enough: str) -> dict[str, Any]:
    """Arguments of ``Speech`` for the sentences of one voice, of which a twentieth, one at least, is held out.

    enough: how much to record, as the end of a sentence.
    Raises UserError where there are several speakers, or one sentence.
    """
    chosen = None if speaker is None else [speaker]
    clips = open_corpus(folder, chosen)
    if len(names := sorted({clip.speaker for clip in clips})) > 1:
        raise UserError(f"{folder} has {len(names)} speakers ({', '.join(names[:5])}); choose one with --speaker")
    if len(clips) < 2:
        raise UserError(f"{folder} has one sentence of the voice; record more, {enough}")
    return {"path": str(folder), "speakers": chosen, "held_out": 0.05, "workers": 0}


def adapt_for(steps: int, module: LightningModule, corpus: Any) -> None:
    """Train so many steps, with a progress bar."""
    with quiet(), Progress(transient=True) as bar:
        task = bar.add_task("adapting", total=steps)
        short_run(module.train(), corpus, steps, lambda: bar.advance(task))
