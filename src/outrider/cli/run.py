"""``outrider run``: answer one prompt, show which tokens were drafted, and measure."""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outrider.cli import _options as options
from outrider.cli._common import Screens, print_json, read_file, sampling
from outrider.cli._open import Opened, Source, load_plugins, open_model, show_plan
from outrider.errors import ConfigError

if TYPE_CHECKING:
    from outrider.cli._answer import Answer
    from outrider.params import SamplingParams

INTERRUPTED = 130
_SHOWN = "Output"


def run(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads it from standard input.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read the prompt from a file; - is standard input.")
    ] = None,
    model: options.Model = "smollm2-135m",
    preset: options.PresetName = "auto",
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
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Run plain decoding as well: speed-up, same tokens?", rich_help_panel=_SHOWN),
    ] = False,
    runs: Annotated[int, typer.Option("--runs", help="Runs of each side with --compare.", rich_help_panel=_SHOWN)] = 2,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the memory plan, load nothing.", rich_help_panel=_SHOWN)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.", rich_help_panel=_SHOWN)
    ] = False,
    no_color: options.NoColor = False,
) -> None:
    """Answer a prompt, showing which tokens were drafted and how fast it went.

    The answer goes to standard output, everything about it to standard error.
    Tokens have the colour of the drafter that proposed them; those of the model
    itself have none. Ctrl-C stops, and keeps what is there.
    """
    screens = Screens.open(no_color)
    load_plugins(plugin)
    source = Source(model, draft_model, preset, catalog, device, dtype, max_context, threads)
    if plan:
        if not show_plan(source, screens, as_json):
            raise typer.Exit(1)
        return
    named = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    params = sampling({**named, "seed": seed, "stop": stop}, param)
    task = Task(read_prompt(prompt, file), seeded(params), system, raw, compare, runs)
    task.check(preset, as_json)
    opened = open_model(source, screens)
    interrupted = (_run_json if as_json else _run_shown)(opened, task, screens)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


@dataclass(frozen=True)
class Task:
    """What is asked for; ``runs`` counts those of each side of a comparison."""

    prompt: str
    params: SamplingParams
    system: str | None = None
    raw: bool = False
    compare: bool = False
    runs: int = 2

    def check(self, preset: str, as_json: bool) -> None:
        """Refuse what cannot work, before a model is loaded."""
        if self.runs < 1:
            raise ConfigError(f"--runs is {self.runs}", hint="It must be 1 or above.")
        if self.compare and preset == "plain":
            raise ConfigError("--compare with --preset plain", hint="Choose a preset to compare with plain.")
        if self.raw and self.system is not None:
            raise ConfigError(
                "--system with --raw", why="raw prompts have no roles", hint="Put the text into the prompt."
            )
        if self.params.logprobs is not None and not as_json:
            raise ConfigError("logprobs are not shown on the screen", hint="Add --json.")

    def encode(self, opened: Opened, screens: Screens) -> list[int]:
        """Token ids of the prompt. A model without a chat template gets it raw, and is told so."""
        if self.raw:
            return opened.llm.encode(self.prompt)
        if not getattr(opened.llm.tokenizer, "chat_template", None) and self.system is None:
            screens.note("the model has no chat template: it continues the prompt as it is (--raw)", "yellow")
            return opened.llm.encode(self.prompt)
        messages = [{"role": "user", "content": self.prompt}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return opened.llm.encode(messages)


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from where it is; one newline at the end of a file or a pipe does not count."""
    if prompt is not None and file is not None:
        raise ConfigError("a prompt and --file", hint="Give one of them.")
    if prompt == "-" or str(file) == "-":
        text = read_file(Path("-"), "standard input", lambda _: sys.stdin.read()).removesuffix("\n")
    elif file is not None:
        text = read_file(file, "prompt file").removesuffix("\n")
    elif prompt is not None:
        text = prompt
    else:
        raise ConfigError("no prompt", hint='Write outrider run "your question", or --file FILE, or - for a pipe.')
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ConfigError("the prompt is not UTF-8 text", hint="Convert it first.")
    if not text.strip():
        raise ConfigError("the prompt is empty", hint="Give at least one word.")
    return text


def seeded(params: SamplingParams) -> SamplingParams:
    """The same with a seed, so that every run of a comparison draws alike and the summary can name it."""
    return params if params.greedy or params.seed is not None else replace(params, seed=secrets.randbits(31))


def _run_json(opened: Opened, task: Task, screens: Screens) -> bool:
    from outrider.cli._answer import decode
    from outrider.cli._compare import Interrupted, compare, warm_up

    tokens = task.encode(opened, screens)
    interrupted = False
    block = None
    try:
        if task.compare:
            warm_up(opened, tokens, task.params)
        answer = decode(opened.llm, tokens, task.params)
        interrupted = answer.interrupted
        if task.compare and not interrupted:
            block = compare(opened, tokens, task.params, answer, task.runs)
    except Interrupted:
        interrupted = True
    print_json(record(opened, task, answer, block))
    return interrupted


def record(opened: Opened, task: Task, answer: Answer, block: dict[str, Any] | None) -> dict[str, Any]:
    """What ``--json`` prints."""
    choice = answer.choice
    fields: dict[str, Any] = {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "stop_reason": choice.stop_reason if choice else None,
        "origins": [[origin.name, origin.depth] for origin in choice.origins] if choice else [],
        "stats": answer.stats.as_dict(),
        "preset": opened.preset,
        "parts": opened.llm.parts.name,
        "guarantee": str(opened.llm.parts.guarantee),
        "model": opened.model,
        "device": str(opened.llm.language_model.device),
        "dtype": str(opened.llm.language_model.dtype).removeprefix("torch."),
        "load_seconds": opened.seconds,
        "seed": task.params.seed,
        "compare": block,
    }
    if task.params.logprobs is not None and choice is not None:
        fields["logprobs"] = choice.logprobs
    return fields


def _run_shown(opened: Opened, task: Task, screens: Screens) -> bool:
    from outrider.cli._answer import decode
    from outrider.cli._compare import Interrupted, compare, warm_up
    from outrider.cli._paint import Palette, Runs, Writer
    from outrider.cli._report import comparison, summary

    screens.note(opened.title())
    tokens = task.encode(opened, screens)
    palette = Palette(opened.drafter)
    runs, writer = Runs(opened.llm.tokenizer), Writer(screens.out, palette)
    try:
        if task.compare:
            with screens.err.status("warming up"):
                warm_up(opened, tokens, task.params)
        answer = decode(opened.llm, tokens, task.params, lambda emission: writer.write(runs.take(emission)))
        writer.end()
        summary(screens.err, answer, runs.counts, palette, seed=task.params.seed)
        if task.compare and not answer.interrupted:
            with screens.err.status("measuring") as status:
                block = compare(opened, tokens, task.params, answer, task.runs, status.update)
            comparison(screens.err, block, opened.preset)
    except Interrupted:
        screens.note("the comparison was interrupted", "yellow")
        return True
    return answer.interrupted
