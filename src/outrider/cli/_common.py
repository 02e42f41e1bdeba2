"""What the verbs share: the two screens, sampling options, JSON, files."""

from __future__ import annotations

import ast
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from outrider.params import SamplingParams


@dataclass(frozen=True)
class Screens:
    """``out`` is standard output, for the answer alone; ``err`` is standard error, for everything about it."""

    out: Console
    err: Console

    @classmethod
    def open(cls, no_color: bool = False) -> Screens:
        """rich decides about colour (terminal or not, NO_COLOR, FORCE_COLOR); ``no_color`` says no to it."""
        from rich.console import Console

        flag = True if no_color else None
        return cls(
            Console(no_color=flag, highlight=False, markup=False, emoji=False),
            Console(no_color=flag, highlight=False, markup=False, emoji=False, stderr=True),
        )

    def note(self, text: str, style: str = "dim") -> None:
        """One line on standard error."""
        self.out.file.flush()
        self.err.print(text, style=style, soft_wrap=True)


def sampling(given: dict[str, Any], pairs: Sequence[str] | None) -> SamplingParams:
    """``SamplingParams`` from options (None: not given) and ``name=value`` pairs, both checked by its own rules."""
    from outrider.params import SamplingParams

    values = {name: value for name, value in given.items() if value not in (None, [])}
    for pair in pairs or ():
        name, sign, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name:
            raise ConfigError(f"--param {pair!r}", hint="Write --param name=value, for example --param min_p=0.1.")
        if name in values:
            raise ConfigError(f"{name} is given twice", hint="Keep one of them.")
        values[name] = _value(text)
    params = SamplingParams.from_dict(values)
    if params.n != 1:
        raise ConfigError(f"n is {params.n}", why="The command shows one answer", hint="Use LLM.generate for several.")
    return params


def _value(text: str) -> Any:
    """A JSON value, a Python literal, or the text itself."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


def print_json(value: Any) -> None:
    """One JSON value on standard output, in ASCII, so that any reader gets it whole."""
    sys.stdout.write(json.dumps(value, default=str) + "\n")
    sys.stdout.flush()


def suggest(word: str, known: Sequence[str]) -> str:
    """The nearest known command, or all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"


def read_file(path: Path, what: str, read: Callable[[Path], str] | None = None) -> str:
    """The text of a UTF-8 file, or a clear error."""
    try:
        return read(path) if read else path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{what} {str(path)!r} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what} {str(path)!r} is not UTF-8 text", hint="Convert it first.") from None
