"""How the report says numbers, and the cells of its tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from outrider.bench.charts import Row
from outrider.bench.result import BenchResult, Interval

NONE = "–"


@dataclass(frozen=True)
class Cell:
    """Of a table: its text, a class of the style sheet, how strong its ground is (0 to 1), its title, and a second,
    smaller line."""

    text: str
    tone: str = ""
    strength: float = 0.0
    title: str = ""
    below: str = ""


def count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def span(interval: Interval, between: str = " to ") -> str:
    return f"{interval.low:.2f}{between}{interval.high:.2f}"


def level(result: BenchResult) -> str:
    return f"{100 * result.settings.level:g} %"


def share(part: int, whole: int) -> str:
    """Per cent, never rounded up to all of them."""
    if part == whole:
        return "100 %"
    return f"{min(99.9, 100 * part / whole):.1f} %"


def colour(interval: Interval | None) -> str:
    """The colour of a speed-up: good or bad where the whole interval is on one side of 1."""
    if interval is None or interval.low <= 1 <= interval.high:
        return "soft"
    return "good" if interval.low > 1 else "bad"


def breakable(name: str, after: str = "|+,:") -> Markup:
    """A name, escaped, with places where a line may end: behind the characters of ``after``, before a bracket."""
    return Markup("<wbr>").join(escape(part) for part in re.split(rf"(?<=[{re.escape(after)}])|(?=\()", name))


def told(rows: Sequence[Row]) -> str:
    """A chart in words."""
    return "; ".join(f"{row.name} {row.says}" for row in rows)
