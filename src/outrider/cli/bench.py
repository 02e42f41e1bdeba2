"""``outrider bench``: measure presets against plain decoding on a suite of prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outrider.cli import _options as options
from outrider.cli._bench import Files
from outrider.cli._common import Screens, sampling
from outrider.cli._open import Source, load_plugins, open_model
from outrider.errors import ConfigError, check_number

if TYPE_CHECKING:
    from outrider.bench.harness import Harness, Options
    from outrider.bench.journal import Journal
    from outrider.bench.suite import Suite
    from outrider.params import SamplingParams

INTERRUPTED = 130
_WHAT = "What is measured"
_SHOWN = "Output"
_LENGTHS = ("max_tokens", "max_new_tokens", "max_completion_tokens")


def bench(
    suite: Annotated[
        str,
        typer.Option(
            "--suite",
            "-s",
            help="own, spec-bench, humaneval, gsm8k, or a file of your own: prompts (.jsonl) or a definition (.yaml).",
            rich_help_panel=_WHAT,
        ),
    ] = "own",
    presets: Annotated[
        str,
        typer.Option(
            "--presets",
            "-p",
            help='Names with commas between, settings and combinations included: pld(depth=8),"sam|pld"; or all. '
            "plain is always measured with them.",
            rich_help_panel=_WHAT,
        ),
    ] = "all",
    limit: Annotated[
        int | None,
        typer.Option("--limit", help="Only this many prompts, taken from all groups in turn.", rich_help_panel=_WHAT),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="The suite's data set: its file, or a folder with it.", rich_help_panel=_WHAT),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", help="Passes over all prompts, each from the start.", rich_help_panel=_WHAT)
    ] = 1,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="A new engine for every prompt: drafters keep nothing they learn.", rich_help_panel=_WHAT
        ),
    ] = False,
    diff: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--diff", metavar="A.json B.json", help="Compare two results instead.", rich_help_panel=_WHAT),
    ] = None,
    model: options.Model = "smollm2-135m",
    draft_model: options.DraftModel = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    max_context: options.MaxContext = None,
    threads: options.Threads = None,
    plugin: options.Plugin = None,
    catalog: options.Catalog = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            "-n",
            help="Longest answer in tokens; else what the suite says.",
            rich_help_panel="Sampling",
        ),
    ] = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    seed: options.Seed = None,
    param: options.Param = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the result; - prints it.", rich_help_panel=_SHOWN),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page with charts; - prints it.", rich_help_panel=_SHOWN),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Throw away what an interrupted run has kept.", rich_help_panel=_SHOWN),
    ] = False,
    no_color: options.NoColor = False,
) -> None:
    """Measure methods against plain decoding on a suite of prompts.

    Every preset answers every prompt with the same weights, prompt by prompt
    and in rotating order: what slows the machine down slows all of them.
    With --json FILE (or --html FILE) results are kept in FILE.partial while
    they grow. Ctrl-C stops; the same command goes on where it stopped.
    """
    screens = Screens.open(no_color)
    files = Files(json_file, html)
    files.check()
    if diff is not None:
        raise typer.Exit(_diff(diff, files, screens))
    load_plugins(plugin)
    source = Source(model, draft_model, "plain", catalog, device, dtype, max_context, threads)
    given = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    task = Task.read(presets, (suite, data, limit), (given, param), (repeats, fresh), draft_model is not None)
    if _measure(task, source, files, screens, restart):
        raise typer.Exit(INTERRUPTED)


@dataclass(frozen=True)
class Task:
    """What is to be measured; everything that can be refused without a model has been."""

    presets: list[str]
    suite: Suite
    limit: int | None
    params: SamplingParams
    options: Options

    @classmethod
    def read(
        cls,
        presets: str,
        prompts: tuple[str, Path | None, int | None],
        params: tuple[dict[str, Any], Sequence[str] | None],
        passes: tuple[int, bool],
        draft_model: bool,
    ) -> Task:
        """From the options: presets; suite, data and limit; sampling options and ``--param``; repeats and fresh."""
        name, data, limit = prompts
        given, pairs = params
        for option, value in (("--limit", limit), ("--max-tokens", given["max_tokens"]), ("--repeats", passes[0])):
            check_number(option, 1 if value is None else value, 1)
        wanted = sampling(given, pairs)
        from outrider.bench.choose import choose, split
        from outrider.bench.harness import Options
        from outrider.bench.suite import load_suite

        specs = split(presets)
        choose(specs, draft_model=draft_model)
        suite = load_suite(name, data=data, limit=limit)
        named = {pair.partition("=")[0].strip().replace("-", "_") for pair in pairs or ()}
        if given["max_tokens"] is None and not named & set(_LENGTHS):
            wanted = replace(wanted, max_tokens=suite.max_tokens)
        return cls(specs, suite, limit, wanted, Options(*passes))


def _measure(task: Task, source: Source, files: Files, screens: Screens, restart: bool) -> bool:
    """Run, show and write; whether it was interrupted."""
    from outrider.bench.harness import Harness
    from outrider.cli._bench import progress, show

    opened = open_model(source, screens)
    harness = Harness(opened.llm, task.suite, task.presets, task.params, task.options, limit=task.limit)
    with screens.err.status("reading the weights once more, for their hash"):
        facts = harness.facts()
    screens.note(facts.line())
    journal = None
    if files.partial is not None:
        journal = harness.journal(files.partial, facts, restart)
        if journal.entries:
            screens.note(f"{files.partial} holds {len(journal.entries)} prompts: going on from there", "yellow")
    interrupted = False
    try:
        with progress(screens) as tell:
            harness.run(journal, tell)
    except KeyboardInterrupt:
        interrupted = True
    if interrupted and not harness.prompts_done:
        screens.note("interrupted before the first prompt was complete", "yellow")
        return True
    result = harness.result(facts)
    show(screens.err if files.to_stdout or interrupted else screens.out, screens, result)
    if interrupted:
        _say_what_is_kept(harness, journal, screens)
        return True
    files.write(result)
    if journal is not None:
        journal.remove()
    return False


def _say_what_is_kept(harness: Harness, journal: Journal | None, screens: Screens) -> None:
    done = f"interrupted after {harness.prompts_done} of {harness.prompts_total} prompts"
    if journal is None:
        screens.note(f"{done}; give --json FILE to be able to go on after an interruption", "yellow")
    else:
        screens.note(f"{done}, which are kept in {journal.path}: the same command goes on from there", "yellow")


def _diff(pair: tuple[Path, Path], files: Files, screens: Screens) -> int:
    """Compare two results; the exit code."""
    if files.html is not None:
        raise ConfigError("--html with --diff", why="two results have no page", hint="Leave it out, or use --json.")
    from outrider.bench import diff
    from outrider.bench.result import BenchResult

    a, b = (BenchResult.read(path) for path in pair)
    found = diff.compare(a, b)
    diff.show(screens.err if files.to_stdout else screens.out, found)
    if files.json is not None:
        files.put(files.json, json.dumps(found.as_dict()))
    return found.exit_code
