"""Options that several verbs take, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL = "Model"
_SAMPLING = "Sampling"
_OUTPUT = "Output"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A known name, a hub id, a folder, or a .gguf file.",
        rich_help_panel=_MODEL,
    ),
]
DraftModel = Annotated[
    str | None,
    typer.Option("--draft-model", help="A second, smaller model that drafts.", rich_help_panel=_MODEL),
]
PresetName = Annotated[
    str,
    typer.Option(
        "--preset",
        "-p",
        help="A method of `outrider presets`, with settings (pld(depth=8)) or combined (sam|pld).",
        rich_help_panel=_MODEL,
    ),
]
Catalog = Annotated[
    Path | None,
    typer.Option("--from", metavar="FILE.toml", help="Further model names.", rich_help_panel=_MODEL),
]
Plugin = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE.py", help="Load presets from a file. Repeatable.", rich_help_panel=_MODEL),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cuda, mps or cpu; else the first found.", rich_help_panel=_MODEL)
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="float32, bfloat16, float16 or float64; else what suits device and model.",
        rich_help_panel=_MODEL,
    ),
]
MaxContext = Annotated[
    int | None,
    typer.Option(
        "--max-context",
        help="Tokens of prompt and answer together; else the model's own limit.",
        rich_help_panel=_MODEL,
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", help="CPU threads; else torch's own choice.", rich_help_panel=_MODEL)
]

MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", "-n", help="Longest answer in tokens. (256 if not given)", rich_help_panel=_SAMPLING),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        "-t",
        help="0 always takes the most likely token. (0 if not given)",
        rich_help_panel=_SAMPLING,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", help="Keep the likeliest tokens up to this probability.", rich_help_panel=_SAMPLING),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", help="Keep this many of the likeliest tokens.", rich_help_panel=_SAMPLING)
]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same answer.", rich_help_panel=_SAMPLING)]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", metavar="TEXT", help="End the answer before this text. Repeatable.", rich_help_panel=_SAMPLING
    ),
]
Param = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        metavar="NAME=VALUE",
        help="Any other field of SamplingParams, such as min_p=0.1. Repeatable.",
        rich_help_panel=_SAMPLING,
    ),
]
System = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="A system message.", rich_help_panel=_SAMPLING)
]

NoColor = Annotated[bool, typer.Option("--no-color", help="No colours (as with NO_COLOR=1).", rich_help_panel=_OUTPUT)]
