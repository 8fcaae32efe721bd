"""``vitalk see``: what is in a picture."""

import json
from pathlib import Path
from typing import Annotated

import typer


def see(
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE...", help="JPEG, PNG, WebP … files.")],
    model: Annotated[
        str | None, typer.Option(help="An .onnx file or a packaged model; the embedded one by default.")
    ] = None,
    top: Annotated[int, typer.Option("-k", "--top", min=1, help="Labels to show.")] = 5,
    engine: Annotated[str, typer.Option(help="onnxruntime or openvino.")] = "onnxruntime",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Name what is in pictures, with probabilities.

    Example: vitalk see cat.jpg --model small/model.onnx
    """
    from vitalk.deploy.pictures import open_picture
    from vitalk.deploy.runtime import Eye

    opened = [open_picture(Path(picture)) for picture in pictures]
    eye = Eye.load(model, engine)
    found = {name: eye.see(picture, top) for name, picture in zip(pictures, opened, strict=True)}
    if as_json:
        print(json.dumps({name: [{"label": a, "probability": p} for a, p in seen] for name, seen in found.items()}))
        return
    for name, seen in found.items():
        print(name)
        for label, probability in seen:
            print(f"  {100 * probability:5.1f} %  {label}")
