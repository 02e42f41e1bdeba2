"""What ``outrider tune`` reads, shows and writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from outrider.errors import ConfigError, nearest

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from outrider.cli._bench import Files
    from outrider.cli._common import Screens
    from outrider.tune.predict import Prediction
    from outrider.tune.profile import Measured, Profile
    from outrider.tune.tuner import Listener, Task

_BUSY = 1.25
"""Unrest above which a profile is not to be trusted."""
_SHOWN = 12
"""Rows of the ranking on the screen; the JSON has all."""


def read_task(
    prompts: tuple[Path | None, str | None, Path | None],
    wanted: str | None,
    limits: tuple[float, int, int, float],
    draft_model: str | None,
) -> Task:
    """From the options: prompts file, suite and data; candidates; budget, checks, max_tokens and temperature. Refuses
    what can be refused before a model is loaded."""
    from outrider.bench.choose import choose, split
    from outrider.bench.suite import load_suite
    from outrider.tune.tuner import Task

    file, suite, data = prompts
    budget, checks, max_tokens, temperature = limits
    if file is not None and suite is not None:
        raise ConfigError("--prompts and --suite", hint="Give one of them.")
    if file is not None and data is not None:
        raise ConfigError("--data with --prompts", why="the file holds the prompts", hint="Leave --data out.")
    names = None if wanted is None else tuple(split(wanted))
    if names is not None:
        choose(names, draft_model=draft_model is not None)
    if not 0 < budget < float("inf"):
        raise ConfigError(f"--budget is {budget:g}", hint="Give a number of seconds above 0.")
    if file is not None and not file.expanduser().is_file():
        raise ConfigError(f"the prompts file {str(file)!r} does not exist", hint="Give a file of JSON lines.")
    found = load_suite(str(file) if file is not None else suite or "own", data=data)
    return Task(found, names, budget, max_tokens, temperature, checks)


def check_engine(export: str | None) -> None:
    """Refuse an engine that is not known."""
    if export is not None:
        from outrider.tune.export import ENGINES

        if export not in ENGINES:
            raise ConfigError(f"--export {export!r}", hint=nearest(export, ENGINES))


@contextmanager
def progress(screens: Screens, task: Task) -> Iterator[Listener]:
    """A bar for each phase, on standard error; the predictions above them as soon as they are there."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from outrider.tune.tuner import PHASES, Listener

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TimeElapsedColumn())
    with Progress(*columns, console=screens.err, transient=True, expand=True) as bar:
        bars: dict[str, TaskID] = {name: bar.add_task(name, total=1.0, start=False) for name in PHASES}

        def phase(name: str, done: float) -> None:
            for earlier in PHASES[: PHASES.index(name)]:
                bar.update(bars[earlier], completed=1.0)
                bar.stop_task(bars[earlier])
            bar.start_task(bars[name])
            bar.update(bars[name], completed=done)

        def predicted(predictions: Sequence[Prediction]) -> None:
            best = sorted(predictions, key=lambda one: -one.speedup)[:3]
            listed = ", ".join(f"{one.name} {one.speedup:.2f}x" for one in best)
            screens.note(f"predicted, before anything is checked: {listed} ({len(predictions)} candidates)")

        yield Listener(phase, predicted)


# -- what came of it ----------------------------------------------------------------------------------------------


def report(profile: Profile, export: str | None, files: Files, screens: Screens) -> None:
    """The ranking, the choice, where it is kept; JSON and another engine's flags where they were asked for."""
    console = screens.err if files.to_stdout or export is not None else screens.out
    ranking(console, profile)
    console.print(f"auto is now {profile.preset}", style="bold green" if profile.preset != "plain" else "bold yellow")
    console.print(profile.why, soft_wrap=True)
    for note in _cautions(profile):
        screens.note(note, "yellow")
    screens.note(f"kept in {profile.file}")
    _write(profile, export, files, screens)


def _write(profile: Profile, export: str | None, files: Files, screens: Screens) -> None:
    if files.json is not None:
        files.put(files.json, json.dumps(profile.model_dump(mode="json") | {"file": str(profile.file)}))
    if export is not None:
        from outrider.tune.export import export as flags_of

        found = flags_of(export, profile.preset, profile.draft_model)
        screens.out.print(found.flags, soft_wrap=True)
        for note in found.notes:
            screens.note(note)


def ranking(console: Console, profile: Profile) -> None:
    """The best candidates: what is believed of them; tokens per second that the check should find, what it found, and
    by how much the prediction was off."""
    work = profile.workload
    title = f"{profile.model} · {work.source}: {_count(work.recorded)} recorded, {_count(work.checked)} checked"
    console.print(title, style="bold", soft_wrap=True)
    console.print(_ranking(profile))
    hidden = len(profile.ranking) - _SHOWN
    if hidden > 0:
        console.print(f"and {hidden} more that are slower", style="dim")
    if profile.left_out:
        console.print(f"{len(profile.left_out)} were not tried to the end (--json says why)", style="dim")


def _ranking(profile: Profile) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, header_style="dim")
    table.add_column("preset", overflow="fold")
    for name in ("gain", "tok/s", "/call", "expected", "measured", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = list(profile.ranking[:_SHOWN])
    shown += [one for one in profile.ranking[_SHOWN:] if one.preset == "plain" or one.measured is not None]
    for one in shown:
        table.add_row(
            one.preset,
            f"{one.speedup:.2f}x",
            f"{one.predicted.tokens_per_second:.1f}",
            f"{one.predicted.mean_accepted_length:.2f}",
            *_measured(one.measured),
            style="bold" if one.preset == profile.preset else "",
        )
    return table


def _measured(one: Measured | None) -> tuple[str, str, str]:
    if one is None:
        return "", "", ""
    return f"{one.predicted.tokens_per_second:.1f}", f"{one.tokens_per_second:.1f}", f"{100 * one.error:+.0f} %"


def _count(prompts: int) -> str:
    return f"{prompts or 'no'} prompt{'s' * (prompts != 1)}"


def _cautions(profile: Profile) -> list[str]:
    """What makes the result worth less than it looks."""
    found = []
    checked = [one.measured for one in profile.ranking if one.measured is not None and one.preset != "plain"]
    if not checked:
        found.append("nothing was checked for real: give a larger --budget, or more prompts")
    elif profile.workload.checked < 3:
        found.append(f"only {_count(profile.workload.checked)} checked: a larger --budget makes the choice surer")
    if profile.unrest > _BUSY:
        times = f"took {profile.unrest:.1f} times as long as the fastest"
        found.append(f"the machine is busy with other things: the usual plain step {times}; tune again when it is not")
    return found


# -- what is kept -------------------------------------------------------------------------------------------------


def list_kept(files: Files, screens: Screens) -> None:
    """All profiles, and files that are none."""
    from outrider.tune import profile

    kept = list(profile.profiles())
    known = [one for _, one in kept if isinstance(one, profile.Profile)]
    if files.json is not None:
        files.put(files.json, json.dumps([one.model_dump(mode="json") | {"file": str(one.file)} for one in known]))
    if not files.to_stdout:
        if known:
            screens.out.print(_listing(known))
        else:
            screens.note("nothing is kept: `outrider tune --model NAME` measures and keeps")
    for path, one in kept:
        if not isinstance(one, profile.Profile):
            screens.note(f"{path} is not used: {one.reason}", "yellow")


def _listing(known: Sequence[Profile]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("model", overflow="fold")
    table.add_column("auto is", overflow="fold")
    for name in ("gain", "type", "device", "threads", "made"):
        table.add_column(name, no_wrap=True)
    for one in known:
        where = one.key.around
        model = one.model if one.draft_model is None else f"{one.model} with {one.draft_model}"
        facts = (f"{one.speedup:.2f}x", where.dtype, where.device, str(where.threads), one.day)
        table.add_row(model, one.preset, *facts)
    return table


def _of_model(model: str) -> list[tuple[Path, Profile]]:
    """Profiles of the model of that name and their files, the newest first. Raises ``ConfigError`` if there is none."""
    from outrider.tune import profile

    known = [(path, one) for path, one in profile.profiles() if isinstance(one, profile.Profile)]
    found = [(path, one) for path, one in known if model in (one.model, Path(one.model).name)]
    if not found:
        names = {one.model for _, one in known}
        hint = nearest(model, names) if names else "`outrider tune` measures and keeps."
        raise ConfigError(f"nothing is kept for the model {model!r}", hint=hint)
    return sorted(found, key=lambda pair: pair[1].made_at, reverse=True)


def show_kept(model: str, export: str | None, files: Files, screens: Screens) -> None:
    """What is kept of a model. JSON and flags are those of the newest profile."""
    found = _of_model(model)
    console = screens.err if files.to_stdout or export is not None else screens.out
    for path, one in found:
        where = one.key.around
        threads = f"{where.threads} thread{'s' * (where.threads != 1)}"
        console.print(f"{one.day} · {where.device} {where.dtype} · {threads} · {where.gpu or where.cpu}")
        ranking(console, one)
        console.print(f"auto is {one.preset}: {one.why}", soft_wrap=True)
        screens.note(str(path))
    _write(found[0][1], export, files, screens)


def forget(model: str, screens: Screens) -> None:
    """Delete the profiles of a model."""
    for path, one in _of_model(model):
        try:
            path.unlink()
        except OSError as error:
            raise ConfigError(f"{str(path)!r} cannot be deleted: {error.strerror or error}") from None
        screens.note(f"forgotten: {one.preset} for {one.model} ({one.key.around.threads} threads, {one.day})")
