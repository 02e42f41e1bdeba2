"""``outrider verify``: a certificate that a method changes nothing, with controls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outrider.cli import _options as options
from outrider.cli._common import Screens, sampling
from outrider.cli._open import Source, load_plugins
from outrider.cli._verify import Outputs, Task, make
from outrider.errors import ConfigError

_WHAT = "What is checked"
_SHOWN = "Output"


def verify(
    model: options.Model = "smollm2-135m",
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            "-p",
            help='Methods with commas between, settings and combinations included: "pld(depth=8),sam|pld"; or all.',
            rich_help_panel="Model",
        ),
    ] = "auto",
    draft_model: options.DraftModel = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    max_context: options.MaxContext = None,
    threads: options.Threads = None,
    plugin: options.Plugin = None,
    catalog: options.Catalog = None,
    suite: Annotated[
        str,
        typer.Option(
            "--suite",
            "-s",
            help="own, another suite of `outrider bench`, or a file of prompts (.jsonl, .yaml).",
            rich_help_panel=_WHAT,
        ),
    ] = "own",
    data: Annotated[
        Path | None,
        typer.Option("--data", help="The suite's data set: its file, or a folder with it.", rich_help_panel=_WHAT),
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option("--prompts", help="How many, taken from all groups in turn. (8)", rich_help_panel=_WHAT),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", "-n", help="Length of every text in tokens. (48)", rich_help_panel=_WHAT),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            help="Continuations of each sampled text; more see smaller faults, 0 leaves sampling out. (300)",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", "-t", help="Of everything that is drawn; 0: greedy only. (1)", rich_help_panel="Sampling"
        ),
    ] = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Same seed, same certificate. (0)", rich_help_panel="Sampling")
    ] = None,
    stop: options.Stop = None,
    param: options.Param = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the certificate; - prints it.", rich_help_panel=_SHOWN),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write it as a page; - prints it.", rich_help_panel=_SHOWN),
    ] = None,
    no_color: options.NoColor = False,
) -> None:
    """Check that a method changes nothing: a certificate, with controls.

    Greedy texts alone and in a batch, texts drawn with a seed, all sampling
    parameters, and the law of many samples, each against plain decoding of
    the same weights. Faults are made on purpose; a check that misses its
    fault makes the certificate inconclusive.

    Exit code: 0 passed (or relaxed, as declared), 1 wrong, 2 bad input,
    3 inconclusive, 130 interrupted (what was found is written).
    """
    screens = Screens.open(no_color)
    outputs = Outputs(json_file, html)
    outputs.check()
    load_plugins(plugin)
    source = Source(model, draft_model, "plain", catalog, device, dtype, max_context, threads)
    source.check()
    from outrider.bench.choose import choose, split
    from outrider.bench.suite import load_suite
    from outrider.certify import Plan

    specs = split(preset)
    choose(specs, draft_model=draft_model is not None)
    shape = {"temperature": 1.0 if temperature is None else temperature, "top_p": top_p, "top_k": top_k, "stop": stop}
    named = {"max_tokens": max_tokens, "prompts": prompts, "samples": samples, "seed": seed}
    for pair in param or ():
        name = pair.partition("=")[0].strip().replace("-", "_")
        if name in ("max_tokens", "seed", "n", "temperature"):
            raise ConfigError(f"--param {pair!r}", hint=f"Use --{name.replace('_', '-')}." if name != "n" else "")
    given = {name: value for name, value in named.items() if value is not None}
    plan = Plan(sampling=sampling(shape, param), **given)
    task = Task(specs, load_suite(suite, data=data), plan)
    code = make(task, source, outputs, screens)
    if code:
        raise typer.Exit(code)
