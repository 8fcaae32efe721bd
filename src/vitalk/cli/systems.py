"""`vitalk systems`: the list of the published systems, and the page of one."""

import ast
import json
from itertools import groupby
from typing import Annotated

import typer

from vitalk import catalog, measurement
from vitalk.catalog import System
from vitalk.errors import UserError, nearest

app = typer.Typer(help="List the 64 published systems, or show one.", invoke_without_command=True)


@app.callback()
def systems(
    context: typer.Context,
    family: Annotated[str, typer.Option(help="Only this family or group, e.g. speech, quantization.")] = "",
    status: Annotated[str, typer.Option(help="Only planned, works or reproduced.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List the systems with their papers, their status and what was measured.

    Example: vitalk systems --family quantization --status works
    """
    if context.invoked_subcommand is not None:
        return
    rows = [_row(system) for system in _chosen(family)]
    if status:
        if status not in catalog.STATUSES:
            raise UserError(f"--status is one of {', '.join(catalog.STATUSES)}, got {status!r}")
        rows = [row for row in rows if row["status"] == status]
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        _print_table(rows)


@app.command()
def show(slug: Annotated[str, typer.Argument(help="The system, e.g. evit.")]) -> None:
    """Show a system's page, its recipe and its measurement.

    Example: vitalk systems show evit
    """
    system = catalog.find(slug)
    print(f"{system.slug}: {system.title}")
    print(f"{system.shelf}, {system.url}, status: {catalog.status(system)}")
    if not system.works:
        return
    print(f"\n{page(system)}")
    recipe = system.folder / "recipe.yaml"
    if recipe.is_file():
        print(f"\n--- recipe.yaml\n{recipe.read_text(encoding='utf-8').rstrip()}")
    print(f"\n--- vitalk reproduce {system.slug}")
    result = measurement.find(system.slug)
    print(result.summary() if result else "not measured yet")


def page(system: System) -> str:
    """The docstring of a system's package, read without importing it (that would import torch)."""
    source = (system.folder / "__init__.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def _chosen(family: str) -> list[System]:
    names = {name for system in catalog.SYSTEMS for name in _names(system)}
    if family and family not in names:
        hint = nearest(family, sorted(names))
        known = ", ".join(dict.fromkeys(system.shelf for system in catalog.SYSTEMS))
        raise UserError(f"there is no family {family!r}.{hint} Known: {known}")
    return [system for system in catalog.SYSTEMS if not family or family in _names(system)]


def _names(system: System) -> set[str]:
    return {system.family, system.shelf} | ({system.group} if system.group else set())


def _row(system: System) -> dict[str, str | None]:
    result = measurement.find(system.slug) if system.works else None
    return {
        "slug": system.slug,
        "title": system.title,
        "family": system.shelf,
        "arxiv": system.arxiv,
        "status": catalog.status(system),
        "verdict": result.verdict if result else None,
        "measured": result.measured if result else None,
        "published": result.published if result else None,
    }


def _print_table(rows: list[dict[str, str | None]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1000  # a pipe has no width of its own, and grep wants a title on one line
    for shelf, members in groupby(rows, key=lambda row: row["family"]):
        table = Table(box=None, show_header=False, pad_edge=False)
        for width in (16, 10, 10):  # the longest slug, status and arXiv id
            table.add_column(min_width=width, no_wrap=True)
        table.add_column(overflow="fold")
        for row in members:
            text = row["title"]
            if row["measured"]:
                text += f"\n{row['measured']} (published: {row['published']}): {row['verdict']}"
            table.add_row(row["slug"], row["status"], row["arxiv"], text)
        console.print(shelf, style="bold")
        console.print(table)
