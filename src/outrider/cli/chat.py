"""``outrider chat``: a conversation at the terminal, or line by line from a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from outrider.cli import _options as options
from outrider.cli._common import Screens, sampling
from outrider.cli._open import Source, load_plugins, open_model
from outrider.errors import ConfigError

if TYPE_CHECKING:
    from outrider.cli._session import Session

BLOCK = '"""'


def chat(
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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per answer.", rich_help_panel="Output")
    ] = False,
    no_color: options.NoColor = False,
) -> None:
    """Hold a conversation; what was already read is not read again.

    A line is a message; several lines are pasted, or stand between two lines of
    triple quotes. /help lists the commands. Ctrl-C stops an answer and keeps the
    conversation, Ctrl-D leaves.
    """
    from outrider.cli._session import Session

    screens = Screens.open(no_color)
    load_plugins(plugin)
    named = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    params = sampling({**named, "seed": seed, "stop": stop}, param)
    source = Source(model, draft_model, preset, catalog, device, dtype, max_context, threads)
    opened = open_model(source, screens, prefix_entries=1)
    session = Session(opened, params, screens, system, as_json)
    session.check()
    interactive = sys.stdin.isatty()
    if interactive:
        screens.note(opened.title())
        screens.note("/help lists the commands, Ctrl-D leaves")
    talk(session, interactive)


def talk(session: Session, interactive: bool) -> None:
    """Messages and commands until there are no more."""
    reader = Terminal(session.screens) if interactive else Lines()
    while (text := reader.read()) is not None:
        if not text.strip():
            continue
        if text.startswith("/"):
            if not session.command(text.strip()):
                return
        else:
            session.say(text)


class Lines:
    """Messages from a pipe: a line each, or several between two lines of triple quotes."""

    def line(self, first: bool) -> str | None:
        try:
            text = sys.stdin.readline()
        except UnicodeDecodeError:
            raise ConfigError("standard input is not UTF-8 text", hint="Convert it first.") from None
        return text.rstrip("\r\n") if text else None

    def read(self) -> str | None:
        """The next message, None at the end."""
        text = self.line(first=True)
        if text is None or not text.strip().startswith(BLOCK):
            return text
        lines = [text.strip().removeprefix(BLOCK)]
        while not lines[-1].endswith(BLOCK) or (len(lines) == 1 and not lines[0]):
            following = self.line(first=False)
            if following is None:
                break
            lines.append(following)
        lines[-1] = lines[-1].removesuffix(BLOCK)
        return "\n".join(lines).strip("\n")


class Terminal(Lines):
    """Messages typed or pasted, with the line editing and the history of readline where there is one."""

    def __init__(self, screens: Screens) -> None:
        self.screens = screens
        try:
            import readline
        except ImportError:
            return
        readline.set_auto_history(True)

    def line(self, first: bool) -> str | None:
        """One line; a pasted block, which arrives at once, is one message. Ctrl-C drops what was typed."""
        while True:
            try:
                lines = [input(self._prompt(first))]
                while not lines[0].startswith("/") and _pending():
                    lines.append(input())
                return "\n".join(lines)
            except EOFError:
                print(flush=True)
                return None
            except KeyboardInterrupt:
                self.screens.out.print()
                self.screens.note("Ctrl-D or /exit leaves")

    def _prompt(self, first: bool) -> str:
        sign = "> " if first else ". "
        # \001 and \002 tell readline that what stands between them has no width.
        return f"\001\033[1m\002{sign}\001\033[0m\002" if self.screens.out.color_system else sign


def _pending() -> bool:
    """Whether more input is waiting: the rest of a paste."""
    import select

    try:
        return bool(select.select([sys.stdin], [], [], 0.03)[0])
    except (OSError, ValueError):
        return False
