"""``vitalk train``: train a system, or any recipe file, with Lightning."""

from pathlib import Path
from typing import Annotated

import typer

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}


def train(
    context: typer.Context,
    system: Annotated[str, typer.Argument(metavar="SLUG|RECIPE.yaml", help="A system, or a recipe file.")],
    data: Annotated[str | None, typer.Option(help="Folder, parquet or hf:NAME; CIFAR-10 by default.")] = None,
    preset: Annotated[str, typer.Option(help="A preset of the recipe: tiny, cpu, paper, or one of its own.")] = "tiny",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Run folder [runs/SLUG-PRESET].")] = None,
    interval: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
) -> None:
    """Train a system; everything after the options goes to LightningCLI.

    Checkpoints, metrics (CSV and TensorBoard) and, at the end, model.safetensors go to the run folder.
    Calling the same command again resumes from the last checkpoint.

    Example: vitalk train evit --preset cpu --trainer.max_epochs=20 --model.init_args.lr=1e-3
    """
    from vitalk.recipes import load_recipe

    load_recipe(system, preset)  # a wrong name is told before torch is imported
    from vitalk.training import run

    run(system, preset, data, output, list(context.args), interval)
