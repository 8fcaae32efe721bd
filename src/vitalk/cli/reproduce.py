"""`vitalk reproduce`: does a paper's claim hold here?"""

import time
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from vitalk import catalog, measurement
from vitalk.errors import UserError
from vitalk.files import data_root


def reproduce(
    slug: Annotated[str, typer.Argument(help="The system, e.g. evit; `vitalk systems` lists them.")],
    minutes: Annotated[float, typer.Option(help="Time to spend; more makes the figures firmer.")] = 10.0,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data sets [default: $VITALK_DATA or the user's cache].")
    ] = None,
) -> None:
    """Measure a paper's headline claim at the scale of this machine and keep the result in results/SLUG.json.

    Example: vitalk reproduce evit --minutes 20
    """
    system = catalog.find(slug)
    if not system.works:
        raise UserError(f"{slug} is planned and cannot be measured yet; `vitalk systems --status works` lists what can")
    if not (isfinite(minutes) and minutes > 0):
        raise UserError(f"--minutes must be a number above 0, got {minutes:g}")
    if data is not None and not data.is_dir():
        raise UserError(f"--data: there is no folder {data}; name the one that holds images/")
    start = time.monotonic()
    result = _measure(system, minutes, data)
    result.seconds = round(time.monotonic() - start, 1)
    result.command = f"vitalk reproduce {slug} --minutes {minutes:g}" + (f" --data {data}" if data else "")
    result.machine = measurement.machine()
    path = result.save(measurement.results_dir() / f"{slug}.json")
    print(f"{result.summary()}\nkept in    {path}")


def _measure(system: catalog.System, minutes: float, data: Path | None) -> measurement.Measurement:
    try:
        module = import_module(f"{system.package}.reproduce")
        if data is None:
            data = data_root()
        return module.measure(minutes=minutes, data=data)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("vitalk"):
            raise
        raise UserError(f"measuring needs the package {error.name}: pip install 'vitalk[train]'") from None
