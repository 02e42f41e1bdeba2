"""Every error a user can meet, in one tree.

    SpecError                    anything outrider raises on purpose
    ├── ConfigError              a name, value or combination of settings that cannot work
    │   └── IncompatibleParts    parts that are fine alone and wrong together
    ├── ModelError               a model that cannot be found, read or driven
    │   └── PullError            a model that could not be fetched completely
    ├── CacheFull                no room left for keys and values
    └── RequestError             one request that cannot be served; others go on

Each message says *what* is wrong (the parameter and its value), *why*, and *what to do*.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpecError(Exception):
    """Base class. ``str()`` is the whole message; ``hint`` is the remedy alone."""

    def __init__(self, what: str, *, why: str = "", hint: str = "") -> None:
        self.what, self.why, self.hint = what, why, hint
        super().__init__(" ".join(_sentence(part) for part in (what, why, hint) if part))


class ConfigError(SpecError, ValueError):
    """A setting that cannot work, found before any model runs."""


class IncompatibleParts(ConfigError):
    """Parts that are each valid but may not be combined."""


class ModelError(SpecError):
    """A model that cannot be found, read, or driven exactly."""


class PullError(ModelError):
    """A download that did not finish; what has arrived is kept for the next attempt."""


class CacheFull(SpecError):
    """The key/value store has no room for the tokens of this step."""


class RequestError(SpecError, ValueError):
    """One request that cannot be served as asked."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``"Did you mean 'x'?"`` or the list of what exists, for error hints."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(known)}." if known else "None are known."


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text[-1] in ".?!:" else text + "."


def check_number(name: str, value: float, low: float, high: float | None = None) -> None:
    """Raise ``ConfigError`` unless ``low <= value`` (and ``value <= high``)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value:
        ok = False
    else:
        ok = high is None or value <= high
    if not ok:
        bounds = f"of at least {low}" if high is None else f"between {low} and {high}"
        raise ConfigError(f"{name}={value!r}", hint=f"Give a number {bounds}.")
