"""``outrider explain``: every step of one answer, or what other settings would have done on a recorded one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outrider.cli import _options as options
from outrider.cli._common import Screens, sampling
from outrider.cli._explain import INTERRUPTED, Given, Shown, decode_live, decode_trace
from outrider.cli._open import Source, load_plugins
from outrider.cli.run import Task, read_prompt, seeded
from outrider.errors import ConfigError

_SHOWN, _REPLAY = "Output", "Replay"
_RECORDED = {
    "prompt": "a prompt",
    "file": "--file",
    "model": "--model",
    "device": "--device",
    "max_context": "--max-context",
    "max_tokens": "--max-tokens",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "seed": "--seed",
    "stop": "--stop",
    "param": "--param",
    "system": "--system",
    "raw": "--raw",
    "trace": "--trace",
}
"""What a trace has decided already, and the options that would decide it again."""

Presets = Annotated[
    list[str] | None,
    typer.Option(
        "--preset",
        "-p",
        help="A method of `outrider presets`; auto, or with --replay the recorded one, if not given. "
        "With --replay repeatable: several are ranked.",
        rich_help_panel="Model",
    ),
]


def explain(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads it from standard input.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read the prompt from a file; - is standard input.")
    ] = None,
    model: options.Model = "smollm2-135m",
    preset: Presets = None,
    draft_model: options.DraftModel = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    max_context: options.MaxContext = None,
    threads: options.Threads = None,
    plugin: options.Plugin = None,
    catalog: options.Catalog = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    param: options.Param = None,
    system: options.System = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="Continue the prompt as it is, without the chat template.", rich_help_panel="Sampling"
        ),
    ] = False,
    steps: Annotated[
        str | None,
        typer.Option(
            "--steps",
            metavar="A:B",
            help="Show steps A to B-1, or one step; -5: the last five.",
            rich_help_panel=_SHOWN,
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Show every node of every draft.", rich_help_panel=_SHOWN)
    ] = False,
    as_json: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write the whole record; - is stdout.", rich_help_panel=_SHOWN),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page to read.", rich_help_panel=_SHOWN)
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="FILE", help="Record what a replay needs.", rich_help_panel=_REPLAY),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay", metavar="FILE", help="Decode a trace again, without the target.", rich_help_panel=_REPLAY
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="SPEC",
            help="Replay and rank all of pld(depth={2,4,8},min_ngram={1..3}). Repeatable.",
            rich_help_panel=_REPLAY,
        ),
    ] = None,
    cost: Annotated[
        Path | None,
        typer.Option("--cost", metavar="FILE", help="Rank by speed-up from this cost curve.", rich_help_panel=_REPLAY),
    ] = None,
    no_color: options.NoColor = False,
) -> None:
    """Show every step of one answer: what was drafted, what stood, and why the rest did not.

    With --trace the answer is recorded; with --replay other presets and
    settings decode it again without the model. Ctrl-C stops, and shows what
    there is.
    """
    screens = Screens.open(no_color)
    shown = Shown(steps, full, as_json, html, trace)
    shown.check()
    load_plugins(plugin)
    if replay is None:
        for name, value in (("--sweep", sweep), ("--cost", cost)):
            if value:
                raise ConfigError(f"{name} without --replay", hint="Record a trace with --trace FILE first.")
        if preset is not None and len(preset) > 1:
            raise ConfigError(f"{len(preset)} presets", why="One answer has one", hint="Several can be replayed.")
        if prompt is None and file is None:
            hint = 'Write outrider explain "your question", --file FILE, or --replay TRACE.'
            raise ConfigError("no prompt", hint=hint)
        named = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        params = seeded(sampling({**named, "seed": seed, "stop": stop}, param))
        name = preset[0] if preset else "auto"
        source = Source(model, draft_model, name, catalog, device, dtype, max_context, threads)
        interrupted = decode_live(source, Task(read_prompt(prompt, file), params, system, raw), shown, screens)
    else:
        _refuse_given(context)
        given = Given(replay, preset or [], sweep or [], cost)
        source = Source("", draft_model, "", catalog, "cpu", dtype, None, threads)
        interrupted = decode_trace(given, source, shown, screens)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _refuse_given(context: typer.Context) -> None:
    """A trace fixes the prompt and all that made the text: options that would change it are refused, not ignored."""
    for name, option in _RECORDED.items():
        if _was_given(context, name):
            raise ConfigError(
                f"{option} with --replay", why="The trace holds that already", hint="Leave it out, or run live."
            )
    for name, option in (("dtype", "--dtype"), ("catalog", "--from")):
        if _was_given(context, name) and not _was_given(context, "draft_model"):
            raise ConfigError(
                f"{option} with --replay", why="No model is loaded", hint="It is for the model of --draft-model."
            )


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
