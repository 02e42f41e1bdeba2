"""The ``outrider`` command: one file per verb, imported when that verb is used.

``outrider --help`` imports neither torch nor a verb: the one-line helps stand in :data:`VERBS`. A verb
``foo`` is a function ``foo`` in ``outrider/cli/foo.py``, written as a typer command; its docstring is its
full help.

Exit codes: 0 done, 1 failed, 2 the request was wrong (bad option or :class:`~outrider.errors.SpecError`),
130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from outrider import __version__
from outrider.errors import SpecError

# verb -> the line that `outrider --help` shows for it
VERBS: dict[str, str] = {
    "run": "Answer a prompt; show what was drafted and how fast it went.",
    "chat": "Hold a conversation; what was already read is not read again.",
    "pull": "Fetch a model: hub, folder, GGUF file or packages with weights.",
    "presets": "List the methods: name, paper, guarantee, what each needs.",
    "bench": "Measure methods against plain decoding on a suite of prompts.",
    "verify": "Check that a method changes nothing: a certificate with controls.",
    "explain": "Show every step of one answer: what was drafted, what stood, why.",
    "tune": "Measure this machine and model, and choose the method for `auto`.",
}

BROKEN_PIPE = 1
USAGE = 2
INTERRUPTED = 130


class LazyGroup(TyperGroup):
    """A group whose commands stand in :data:`VERBS` and are imported when one of them is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that ``args`` name and what is left for it; unknown verbs are refused by typer."""
        if args and args[0] in VERBS:
            return args[0], load_verb(args[0]), args[1:]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="outrider",
    cls=LazyGroup,
    help="Speculative decoding over unmodified transformers models: the same text, sooner.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain: importing rich would double the time this help takes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"outrider {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and stop."),
    ] = False,
) -> None:
    """Takes the options that stand before the verb; both of them end the program by themselves."""


def _stub(verb: str) -> Callable[[], None]:
    """Stands in for ``verb`` in help, completion and suggestions; never called."""

    def stub() -> None:
        raise AssertionError(f"the stub of {verb!r} was called")

    return stub


for _verb, _line in VERBS.items():
    app.command(_verb, help=_line)(_stub(_verb))


def load_verb(verb: str) -> Any:
    """Import ``outrider.cli.<verb>`` and make a command of its function of the same name."""
    function = getattr(importlib.import_module(f"{__name__}.{verb}"), verb)
    single = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    single.command(verb)(function)
    return typer.main.get_command(single)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line (``sys.argv`` when ``args`` is None) and return its exit code.

    A :class:`SpecError` becomes one message on standard error; with ``OUTRIDER_DEBUG=1`` its traceback is
    shown as well.
    """
    try:
        typer.main.get_command(app).main(args=args, prog_name="outrider")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except SpecError as error:
        _show(error)
        code = USAGE
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = BROKEN_PIPE
    else:
        code = 0
    return _flush(code)


def _show(error: SpecError) -> None:
    if os.environ.get("OUTRIDER_DEBUG", "0") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(f"error: {error}", style="red"), soft_wrap=True)


def _flush(code: int) -> int:
    """Write out what is buffered now, where a reader that has gone away can still be met quietly."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends: give it somewhere to write to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or BROKEN_PIPE
    return code
