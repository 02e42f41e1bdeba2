"""``outrider bench``: measure presets against plain decoding on a suite of prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from outrider.cli import _options as options
from outrider.cli._bench import Files
from outrider.cli._bench_run import Task, find_exports, measure
from outrider.cli._common import Screens
from outrider.cli._open import Source, load_plugins
from outrider.errors import ConfigError

INTERRUPTED = 130
_WHAT = "What is measured"
_PEERS = "Peers"
_SHOWN = "Output"


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
    peers: Annotated[
        bool,
        typer.Option(
            "--peers",
            help="Other programs as well, where installed: transformers generate, llama-cpp-python, openvino-genai.",
            rich_help_panel=_PEERS,
        ),
    ] = False,
    gguf: Annotated[
        Path | None,
        typer.Option("--gguf", metavar="FILE", help="The same model for llama-cpp-python.", rich_help_panel=_PEERS),
    ] = None,
    openvino: Annotated[
        Path | None,
        typer.Option("--openvino", metavar="FOLDER", help="Its export for openvino-genai.", rich_help_panel=_PEERS),
    ] = None,
    openvino_draft: Annotated[
        Path | None,
        typer.Option("--openvino-draft", metavar="FOLDER", help="The draft model's export.", rich_help_panel=_PEERS),
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
    exports = {"gguf": gguf, "openvino": openvino, "openvino_draft": openvino_draft}
    task = Task.read(presets, (suite, data, limit), (given, param), (repeats, fresh), draft_model is not None)
    task = task.beside(find_exports(exports, wanted=peers))
    if measure(task, source, files, screens, restart):
        raise typer.Exit(INTERRUPTED)


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
