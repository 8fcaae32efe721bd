"""Recipes: the LightningCLI configurations that systems and parts bring along, by name."""

from importlib import resources
from pathlib import Path
from typing import Any

from vitalk.errors import UserError, nearest

PARTS = {"vocoder": "vitalk.speech.vocoder", "aligner": "vitalk.speech.align"}  # trained like systems, but none


def load_recipe(name: str, preset: str) -> tuple[str, dict[str, Any]]:
    """(short name, LightningCLI configuration) of a system's recipe, of a part's ("vocoder") or of a recipe file.

    Raises UserError for systems, files and presets that do not exist.
    """
    import yaml

    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"there is no recipe at {name}")
        text, short = Path(name).read_text(), Path(name).stem
    elif name in PARTS:
        text, short = resources.files(PARTS[name]).joinpath("recipe.yaml").read_text(), name
    else:
        from vitalk.catalog import find

        system = find(name)
        if not system.works:
            raise UserError(f"{name} is planned, not built; vitalk systems --status works lists what can be trained")
        text, short = resources.files(system.package).joinpath("recipe.yaml").read_text(), name
    presets = (yaml.safe_load(text) or {}).get("presets", {})
    if preset not in presets:
        raise UserError(f"{name} has no preset {preset}; it has {', '.join(presets)}.{nearest(preset, list(presets))}")
    return f"{short}-{preset}", presets[preset]
