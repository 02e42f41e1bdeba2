"""``outrider tune``: measure this machine and model, and choose the method that ``auto`` uses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outrider.cli import _options as options
from outrider.cli._bench import Files
from outrider.cli._common import Screens
from outrider.cli._open import Source, load_plugins, open_model
from outrider.errors import ConfigError

if TYPE_CHECKING:
    from outrider.tune.profile import Profile
    from outrider.tune.tuner import Task

INTERRUPTED = 130
_WHAT = "What is tuned for"
_KEPT = "What is kept"
_SHOWN = "Output"


def tune(
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE.jsonl", help="Your own prompts, one JSON object a line.", rich_help_panel=_WHAT
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option("--suite", "-s", help="Or a suite of `outrider bench`. (own if not given)", rich_help_panel=_WHAT),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="The suite's data set: its file, or a folder with it.", rich_help_panel=_WHAT),
    ] = None,
    wanted: Annotated[
        str | None,
        typer.Option(
            "--candidates",
            help='Presets with commas between, such as pld(depth=4),"sam|pld"; else a grid over those that fit.',
            rich_help_panel=_WHAT,
        ),
    ] = None,
    budget: Annotated[
        float,
        typer.Option("--budget", metavar="SECONDS", help="How long it may take, loading apart.", rich_help_panel=_WHAT),
    ] = 60.0,
    checks: Annotated[
        int,
        typer.Option("--check", help="How many of the best are measured for real.", rich_help_panel=_WHAT),
    ] = 2,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", help="Tokens of each answer.", rich_help_panel=_WHAT)
    ] = 48,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", help="What you decode with.", rich_help_panel=_WHAT)
    ] = 0.0,
    show: Annotated[
        bool, typer.Option("--show", help="Show what is kept of --model; measure nothing.", rich_help_panel=_KEPT)
    ] = False,
    everything: Annotated[
        bool, typer.Option("--list", help="List all that is kept; measure nothing.", rich_help_panel=_KEPT)
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Delete what is kept of --model.", rich_help_panel=_KEPT)
    ] = False,
    model: options.Model = "smollm2-135m",
    draft_model: options.DraftModel = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    max_context: options.MaxContext = None,
    threads: options.Threads = None,
    plugin: options.Plugin = None,
    catalog: options.Catalog = None,
    export: Annotated[
        str | None,
        typer.Option(
            "--export",
            metavar="ENGINE",
            help="Print the flags of the choice for vllm, sglang or llama.cpp (with --show: of the kept one).",
            rich_help_panel=_SHOWN,
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write it all; - prints it.", rich_help_panel=_SHOWN)
    ] = None,
    no_color: options.NoColor = False,
) -> None:
    """Measure this machine and model, and choose the method for `auto`.

    Times the model's forward for many draft sizes, decodes a few prompts,
    predicts the speed of every candidate from these, measures the best for
    real on other prompts, and keeps the choice: from then on the preset auto
    of run, chat, bench and LLM uses it for this model on this machine.
    Ctrl-C stops and keeps nothing.
    """
    from outrider.cli import _tune

    screens = Screens.open(no_color)
    files = Files(json_file, None)
    files.check()
    if sum((show, everything, forget)) > 1:
        raise ConfigError("--show, --list and --forget", hint="Give one of them.")
    load_plugins(plugin)
    _tune.check_engine(export)
    if everything or forget or show:
        if export is not None and not show:
            raise ConfigError("--export with --list or --forget", hint="Use it with --show, or alone.")
        if everything:
            _tune.list_kept(files, screens)
        elif forget:
            _tune.forget(model, screens)
        else:
            _tune.show_kept(model, export, files, screens)
        return
    task = _tune.read_task((prompts, suite, data), wanted, (budget, checks, max_tokens, temperature), draft_model)
    source = Source(model, draft_model, "plain", catalog, device, dtype, max_context, threads)
    profile = _measure(task, source, screens)
    if profile is None:
        raise typer.Exit(INTERRUPTED)
    _tune.report(profile, export, files, screens)


def _measure(task: Task, source: Source, screens: Screens) -> Profile | None:
    """Tune and save; None if it was interrupted."""
    from outrider.cli import _tune
    from outrider.tune import profile
    from outrider.tune.tuner import Tuner

    profile.prepare()
    opened = open_model(source, screens)
    tuner = Tuner(opened.llm, task, source.model, source.draft_model)
    screens.note(opened.title())
    try:
        with _tune.progress(screens, task) as listener:
            tuner.listener = listener
            found = tuner.run()
        profile.save(found)
        if opened.llm.draft is not None and found.draft_model is None:  # an earlier choice that used it is outdated
            profile.discard(profile.key_of(opened.llm.language_model, opened.llm.draft.model))
    except KeyboardInterrupt:
        screens.note("interrupted: nothing was kept", "yellow")
        return None
    return found
