"""What ``outrider bench`` shows and writes: progress, the table, files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from outrider.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from outrider.bench.harness import Step
    from outrider.bench.result import BenchResult, Figures, Interval, Result
    from outrider.cli._common import Screens

STDOUT = Path("-")


@dataclass(frozen=True)
class Files:
    """Where results go: ``--json`` and ``--html``; ``-`` is standard output."""

    json: Path | None
    html: Path | None

    @property
    def to_stdout(self) -> bool:
        """Whether standard output belongs to one of them, so that all else must go elsewhere."""
        return STDOUT in (self.json, self.html)

    @property
    def partial(self) -> Path | None:
        """Where an unfinished run is kept; None when no file was asked for."""
        for path in (self.json, self.html):
            if path is not None and path != STDOUT:
                return path.with_name(path.name + ".partial")
        return None

    def check(self) -> None:
        """Refuse before anything is measured what could not be written after it."""
        for option, path in (("--json", self.json), ("--html", self.html)):
            if path is None or path == STDOUT:
                continue
            folder = path.parent
            if path.is_dir():
                raise ConfigError(f"{option} {str(path)!r} is a folder", hint="Give the name of a file.")
            if not folder.is_dir():
                raise ConfigError(f"{option} {str(path)!r}: the folder {str(folder)!r} does not exist", hint="Make it.")
            if not os.access(path if path.exists() else folder, os.W_OK) or not os.access(folder, os.W_OK):
                raise ConfigError(f"{option} {str(path)!r} cannot be written", hint="Choose another place.")
        if self.json is not None and self.json == self.html:
            raise ConfigError(f"--json and --html are both {str(self.json)!r}", hint="Give two names.")
        if self.html is not None:
            from outrider.bench import report

            report.require()

    def write(self, result: BenchResult) -> None:
        """Everything that was asked for. Raises ``ConfigError`` for a file that cannot be written."""
        if self.json is not None:
            self.put(self.json, result.to_json())
        if self.html is not None:
            from outrider.bench import report

            self.put(self.html, report.page(result))

    @staticmethod
    def put(path: Path, text: str) -> None:
        """Write a file whole or not at all."""
        if path == STDOUT:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
            return
        fresh = path.with_name(path.name + ".new")
        try:
            fresh.write_text(text + "\n", encoding="utf-8")
            os.replace(fresh, path)
        except OSError as error:
            raise ConfigError(f"{str(path)!r} cannot be written: {error.strerror or error}") from None


@contextmanager
def progress(screens: Screens) -> Iterator[Callable[[Step], None]]:
    """A bar on standard error: who answers what, how many answers are there, how long the rest may take."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("answers"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=screens.err, transient=True, speed_estimate_period=600, expand=True) as bar:
        task = bar.add_task("warming up", total=None)

        def tell(step: Step) -> None:
            if bar.tasks[task].total is None:  # what an earlier attempt measured was not that fast
                bar.reset(task, total=step.total, completed=step.done)
            bar.update(task, description=f"{step.who} · {step.prompt}", completed=step.done)

        yield tell


# -- the table ----------------------------------------------------------------------------------------------------


def show(console: Console, screens: Screens, result: BenchResult) -> None:
    """The table on ``console``; what to know about it on standard error."""
    suite, settings = result.suite, result.settings
    prompts = "1 prompt" if suite.prompts == 1 else f"{suite.prompts} prompts"
    title = f"{settings.model} · {suite.name} {suite.version}, {prompts}, up to {settings.max_tokens} tokens"
    if settings.temperature:
        title += f", temperature {settings.temperature:g}"
    console.print(title, style="bold", soft_wrap=True)
    rows: list[Result] = [*result.presets, *result.peers]
    groups = list(result.plain.groups) if len(result.plain.groups) > 1 else []
    peers = bool(result.peers)
    whole = _table(rows, groups, settings.level, peers)
    if _fits(console, whole):
        console.print(whole)
    else:
        without_groups = _table(rows, [], settings.level, peers)
        console.print(
            without_groups if _fits(console, without_groups) else _table(rows, [], settings.level, peers=False)
        )
        if groups and _fits(console, turned := _by_group(rows, groups)):
            console.print(turned)
    for kind, listed in (("not run", result.left_out), ("failed", result.failures)):
        for one in listed:
            screens.note(f"{kind}: {one.name}: {one.reason}", "yellow")
    wrong = sum(preset.wrong for preset in result.presets)
    if wrong:
        answers = "1 answer differs" if wrong == 1 else f"{wrong} answers differ"
        screens.note(f"{answers} from plain decoding by more than rounding: see `outrider verify`", "red")
    for note in result.notes:
        screens.note(note)


def _table(rows: Sequence[Result], groups: Sequence[str], level: float, peers: bool) -> Table:
    """With a column of speed-ups for each of ``groups``, and with ``peers`` one that sets them against plain."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("preset", overflow="fold", min_width=12)
    table.add_column(f"speed-up [{100 * level:g} %]", no_wrap=True)
    table.add_column("tokens/s", justify="right", no_wrap=True)
    table.add_column("accepted", justify="right", no_wrap=True)
    table.add_column("identical", justify="right", no_wrap=True)
    if peers:
        table.add_column("over plain", justify="right")
    for group in groups:
        table.add_column(group, justify="right", no_wrap=True)
    best = max((row.speedup or 0.0 for row in rows), default=0.0)
    for row in rows:
        cells: list[str | Text] = [_name(row), _speedup(row, best), f"{row.tokens_per_second:.1f}"]
        cells += [_accepted(row), _identical(row)]
        if peers:
            cells.append(_over_plain(row))
        cells += [_times(row.groups.get(group)) for group in groups]
        table.add_row(*cells)
    return table


def _by_group(rows: Sequence[Result], groups: Sequence[str]) -> Table:
    """Speed-ups with a line for each group, for terminals that have no room for a column each."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("speed-up", no_wrap=True)
    rows = [row for row in rows if row.name != row.baseline]
    for row in rows:
        table.add_column(_name(row), justify="right", no_wrap=True)
    for group in groups:
        table.add_row(group, *(_times(row.groups.get(group)) for row in rows))
    return table


def _name(row: Result) -> str:
    """The name; with the baseline below it where that is not outrider's plain."""
    return row.name if row.baseline in ("plain", row.name) else f"{row.name}\n(over {row.baseline})"


def _speedup(row: Result, best: float) -> Text:
    from rich.text import Text

    if row.speedup is None:
        return Text("-")
    if row.name == row.baseline:
        return Text("1", "dim")
    style = "bold green" if row.speedup == best and best > 1 else "red" if _below_one(row.interval) else ""
    text = Text(f"{row.speedup:.2f}", style)
    if row.interval is not None:
        text.append(f" [{row.interval.low:.2f}, {row.interval.high:.2f}]", "dim")
    return text


def _below_one(interval: Interval | None) -> bool:
    return interval is not None and interval.high < 1


def _accepted(row: Result) -> str:
    return "-" if row.mean_accepted_length is None else f"{row.mean_accepted_length:.2f}"


def _identical(row: Result) -> Text:
    """How many of how many, ties and faults named."""
    from rich.text import Text

    if row.identical is None:
        return Text("not promised", "dim")
    text = Text("all" if row.identical == 1 else f"{row.identical_answers} of {row.compared}")
    if row.ties:
        text.append(f", {row.ties} tie" + "s" * (row.ties > 1), "yellow")
    if row.wrong:
        text.append(f", {row.wrong} wrong", "red")
    return text


def _over_plain(row: Result) -> str:
    """The speed-up over outrider's own plain decoding, also of peers."""
    from outrider.bench.result import PeerResult

    ratio = row.over_plain.value if isinstance(row, PeerResult) and row.over_plain else row.speedup
    return "-" if ratio is None else f"{ratio:.2f}"


def _times(figures: Figures | None) -> str:
    return "-" if figures is None or figures.speedup is None else f"{figures.speedup:.2f}"


def _fits(console: Console, table: Table) -> bool:
    wanted = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    return wanted <= console.width
