"""``outrider presets``: the methods there are, as a table, as JSON, or one as a page."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outrider.cli import _options as options
from outrider.cli._common import Screens, print_json
from outrider.cli._open import load_plugins

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from outrider.registry import Preset

_GUARANTEES = {
    "identical": "token for token the text of plain decoding, at every temperature",
    "exact": "the distribution of plain decoding; at temperature 0 token for token its text",
    "relaxed": "the distribution changes; see the page for how much",
}


def presets(
    name: Annotated[str | None, typer.Argument(help="Show this one's page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugin: options.Plugin = None,
    no_color: options.NoColor = False,
) -> None:
    """List the methods: name, paper, guarantee, what each needs, whether it is trained."""
    from outrider.registry import REGISTRY

    load_plugins(plugin)
    if name is not None:
        found = REGISTRY.get(name)
        if as_json:
            print_json({**found.as_dict(), "aliases": list(found.aliases), "settings": found.settings})
        else:
            _page(Screens.open(no_color).out, found)
        return
    known = REGISTRY.all()
    if as_json:
        print_json([preset.as_dict() for preset in known])
    else:
        _table(Screens.open(no_color).out, known)


def link(paper: str) -> str:
    """The address of a paper: arXiv numbers get one, addresses are ones."""
    return paper if not paper or "://" in paper else f"https://arxiv.org/abs/{paper}"


def _table(console: Console, known: list[Preset]) -> None:
    """One line per preset on a wide terminal; else its facts on one line and what it does below."""
    from rich.padding import Padding
    from rich.text import Text

    rows = [["name", "guarantee", "trained", "needs", "paper"]]
    for preset in known:
        needs = ", ".join(preset.needs).replace("_", " ") or "-"
        trained = "yes" if preset.trained else "no"
        rows.append([preset.name, str(preset.guarantee), trained, needs, _brief(preset.paper)])
    widths = [max(len(row[i]) for row in rows) + 2 for i in range(len(rows[0]))]
    facts = sum(widths)
    line_of: list[Preset | None] = [None, *known]
    for row, entry in zip(rows, line_of, strict=True):
        line = Text(no_wrap=True, overflow="ellipsis")
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            style = "dim" if entry is None else "bold" if i == 0 else ""
            if entry is not None and entry.paper and i == 4:
                style = f"link {link(entry.paper)}"
            line.append(cell, style).append(" " * (width - len(cell)))
        if console.width >= facts + 60:
            grid = _side_by_side(facts, line, Text("summary" if entry is None else _prose(entry.summary), "dim"))
            console.print(grid)
            continue
        line.rstrip()
        console.print(line)
        if entry is not None:
            console.print(Padding(Text(_prose(entry.summary), "dim"), (0, 0, 0, 4), expand=False))
    console.print()
    console.print(f"{len(known)} presets; `outrider presets NAME` shows one, a|b and a+b combine two.", style="dim")


def _side_by_side(width: int, left: Text, right: Text) -> Table:
    from rich.table import Table

    grid = Table.grid()
    grid.add_column(width=width, no_wrap=True)
    grid.add_column()
    grid.add_row(left, right)
    return grid


def _page(console: Console, preset: Preset) -> None:
    from rich.table import Table
    from rich.text import Text

    title = Text(preset.name, "bold")
    if preset.aliases:
        title.append(f"  (also {', '.join(preset.aliases)})", "not bold dim")
    console.print(title)
    console.print()
    for paragraph in (inspect.getdoc(preset.build) or "").split("\n\n"):
        console.print(_prose(paragraph))
        console.print()
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    guarantee = str(preset.guarantee)
    facts.add_row("guarantee", f"{guarantee}: {_GUARANTEES.get(guarantee, '')}")
    facts.add_row("needs", ", ".join(preset.needs).replace("_", " ") or "nothing beside the model")
    facts.add_row("trained", "yes" if preset.trained else "no")
    if preset.paper:
        facts.add_row("paper", Text(link(preset.paper), style=f"link {link(preset.paper)}"))
    settings = preset.settings
    for index, (name, default) in enumerate(settings.items()):
        facts.add_row("settings" if index == 0 else "", f"{name} = {default!r}")
    if settings:
        name, default = next(iter(settings.items()))
        facts.add_row("", Text(f'outrider run --preset "{preset.name}({name}={default!r})" ...', "dim"))
    console.print(facts)


def _prose(text: str) -> str:
    """A paragraph of a docstring on one line."""
    return " ".join(text.replace("``", "`").split())


def _brief(paper: str) -> str:
    """A paper's number, or the last part of its address."""
    return paper if "://" not in paper else Path(paper.rstrip("/")).name
