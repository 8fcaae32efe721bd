"""``vitalk mels``: what an acoustic model makes of a corpus, for a vocoder to be tuned on."""

from pathlib import Path
from typing import Annotated

import typer


def mels(
    model: Annotated[Path, typer.Argument(help="Run folder, or model.safetensors, of an acoustic system.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the mels, one file a recording.")],
    aligner: Annotated[
        Path | None, typer.Option(help="model.safetensors of the aligner that it was trained with, if it was.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="The corpus; kokoro_en of the data root by default.")] = None,
    batch_frames: Annotated[int, typer.Option(min=1, help="Mel frames a batch.")] = 6000,
) -> None:
    """Write the mels of a corpus as the model speaks them, told of the recordings what training tells it.

    Files that are there already stay: calling the same command again goes on.

    Example: vitalk mels runs/voice/model.safetensors --aligner runs/aligner/model.safetensors -o runs/mels
    """
    from vitalk.speech.features import Speech
    from vitalk.speech.vocoder.heard import write_mels
    from vitalk.trained import load_training

    module, about = load_training(model)
    named = {"aligner": None if aligner is None else str(aligner), "wave": module.WAVES}
    corpus = Speech(data, about["speakers"], about["lang"], about["mel"], batch_frames=batch_frames, workers=0, **named)
    corpus.setup()
    made = write_mels(module.mel, corpus, output)
    print(f"{output}: {made} mels made, {len(corpus.train) + len(corpus.test)} in all")
