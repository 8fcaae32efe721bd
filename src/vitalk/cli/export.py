"""``vitalk export``: a model as one ONNX file."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[str, typer.Argument(help="A timm name, a checkpoint file or hf-hub:NAME.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .onnx file.")],
    labels: Annotated[Path | None, typer.Option(help="JSON list of class names, where the model has none.")] = None,
    random_weights: Annotated[bool, typer.Option(help="A timm model with random weights.")] = False,
) -> None:
    """Write a model as ONNX, with its preprocessing and labels in the file's metadata.

    Example: vitalk export deit_small_patch16_224 -o deit.onnx
    """
    import json

    from rich.console import Console

    from vitalk.deploy.load import load_model
    from vitalk.deploy.onnx_export import export_onnx
    from vitalk.errors import UserError

    if not output.parent.is_dir():
        raise UserError(f"there is no folder {output.parent}; create it or choose another with -o")
    loaded = load_model(model, pretrained=not random_weights)
    names = loaded.labels or [str(i) for i in range(loaded.model.num_classes)]
    if labels is not None:
        try:
            names = json.loads(labels.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{labels} is not a JSON list of class names ({error})") from None
    with Console(stderr=True).status(f"exporting {model}"):
        export_onnx(loaded.model, output, loaded.preprocess, names, name=loaded.name)
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB, {len(names)} classes, agrees with torch")
