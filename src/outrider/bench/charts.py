"""Charts as SVG, drawn with Altair and without a browser.

No script and no font travels with them. Colours are variables of the page's style sheet, so that one drawing serves the
light and the dark page; what a mark stands for is its title, which browsers show under the pointer.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from outrider.errors import ConfigError

if TYPE_CHECKING:
    import altair as alt

WIDTHS = {"wide": 530, "narrow": 348}
"""Pixels. Every chart of rows is drawn for both, so that its text is as large on a telephone as on a screen."""

PANEL = (168, 124)
"""Width and height of a panel, its axes included."""

STEP = 40
"""Height of one row: its name above, its mark below."""

NUMBERS = ",.6~f"
"""How axes of plain numbers read (d3-format)."""

LETTER = 7.0
"""Pixels of a letter, generously."""

_SVG = "{http://www.w3.org/2000/svg}"
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")


@dataclass(frozen=True)
class Row:
    """One line of a chart: a value, its interval if it has one, and what is said beside it and under the pointer.
    ``tone`` is a colour variable of the page."""

    name: str
    value: float
    says: str
    tip: str
    low: float | None = None
    high: float | None = None
    tone: str = "c1"


@dataclass(frozen=True)
class Stack:
    """A bar of several parts, each with a length, a tone and what is said under the pointer."""

    name: str
    says: str
    parts: Sequence[tuple[float, str, str]]


@dataclass(frozen=True)
class Point:
    """Of a line. ``sure``: enough was counted for it to mean something."""

    x: float
    y: float
    tip: str
    sure: bool = True


@dataclass(frozen=True)
class Frame:
    """What the panels of one kind share: the ends of both axes, ticks, and how numbers on them read."""

    x: tuple[float, float]
    y: tuple[float, float]
    labels: Sequence[str] = ()
    """Of x = 0, 1, 2, ... where they are not the numbers themselves."""
    y_format: str = NUMBERS


def require() -> None:
    """Raise ``ConfigError`` unless charts can be drawn."""
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "the HTML report cannot be made",
            why=f"its charts need a package that is not installed ({error.name})",
            hint='Run pip install "outrider[report]", or leave the page out: the JSON file has every figure.',
        ) from None


def intervals(rows: Sequence[Row], says: str, reference: float = 1.0) -> dict[str, Markup]:
    """A dot per row with the whiskers of its interval, against a dashed line at ``reference``."""
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None] + [reference]
    low, high = min(ends), max(ends)
    spread = (high - low) or 0.1
    data = [_datum(place, row) for place, row in enumerate(rows)]

    def layers() -> list[Any]:
        import altair as alt

        whiskers = [datum for datum in data if datum["low"] is not None]
        tone = alt.Color("tone:N", scale=None)
        return [
            _line_at(reference),
            _marks(whiskers).mark_rule(strokeWidth=3, yOffset=8).encode(x="low:Q", x2="high:Q", color=tone),
            _marks(data).mark_circle(size=90, opacity=1, yOffset=8).encode(x="value:Q", color=tone),
        ]

    return _both(data, layers, (low - 0.05 * spread, high), says, ".2~f")


def bars(rows: Sequence[Row], says: str, reference: float | None = None) -> dict[str, Markup]:
    """A bar per row from zero, with a dashed line at ``reference``."""
    data = [_datum(place, row) | {"end": row.value} for place, row in enumerate(rows)]

    def layers() -> list[Any]:
        import altair as alt

        bar = _marks(data).mark_bar(height=11, yOffset=8, cornerRadiusEnd=2)
        drawn = [bar.encode(x="zero:Q", x2="value:Q", color=alt.Color("tone:N", scale=None))]
        return drawn if reference is None else [*drawn, _line_at(reference)]

    return _both(data, layers, (0.0, max([row.value for row in rows] + [reference or 0.0])), says, NUMBERS)


def stacks(rows: Sequence[Stack], says: str) -> dict[str, Markup]:
    """A bar per row, its parts one after the other."""
    data: list[dict[str, Any]] = []
    pieces: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        start = 0.0
        for length, tone, tip in row.parts:
            pieces.append({"row": place, "start": start, "end": start + length, "tone": f"var(--{tone})", "tip": tip})
            start += length
        data.append({"row": place, "name": row.name, "says": row.says, "end": start, "tip": row.says})

    def layers() -> list[Any]:
        import altair as alt

        bar = _marks(pieces).mark_bar(height=11, yOffset=8)
        return [bar.encode(x="start:Q", x2="end:Q", color=alt.Color("tone:N", scale=None))]

    return _both(data, layers, (0.0, max((datum["end"] for datum in data), default=1.0)), says, NUMBERS)


def panel(line: Sequence[Point], others: Iterable[Sequence[Point]], frame: Frame, says: str) -> Markup:
    """One line in front of all others, small. Points that are not ``sure`` are hollow."""
    import altair as alt

    x = alt.X(
        "x:Q",
        title=None,
        scale=alt.Scale(domain=list(frame.x), nice=False),
        axis=alt.Axis(grid=False, tickCount=5, format="~s", labelFlush=False, tickMinStep=1, **_labels(frame)),
    )
    y = alt.Y(
        "y:Q",
        title=None,
        scale=alt.Scale(domain=list(frame.y), nice=False, clamp=True),
        axis=alt.Axis(format=frame.y_format, tickCount=4, domain=False, ticks=False),
    )
    behind = [{"x": point.x, "y": point.y, "of": of} for of, points in enumerate(others) for point in points]
    front = [{"x": p.x, "y": p.y, "tip": p.tip, "fill": "var(--c1)" if p.sure else "var(--paper)"} for p in line]
    chart = alt.layer(
        alt.Chart(alt.Data(values=behind))
        .mark_line(strokeWidth=1, color="var(--soft)", opacity=0.5)
        .encode(x=x, y=y, detail="of:N"),
        alt.Chart(alt.Data(values=front)).mark_line(strokeWidth=2, color="var(--c1)").encode(x=x, y=y),
        alt.Chart(alt.Data(values=front))
        .mark_point(size=22, opacity=1, stroke="var(--c1)", strokeWidth=1.2)
        .encode(x=x, y=y, fill=alt.Fill("fill:N", scale=None), description="tip:N"),
    )
    fit = alt.AutoSizeParams(type="fit", contains="padding")
    return _svg(_dressed(chart.properties(width=PANEL[0], height=PANEL[1], autosize=fit), size=11), says)


def _labels(frame: Frame) -> dict[str, Any]:
    """The axis options for labels of one's own; they come from numbers, never from outside."""
    if not frame.labels:
        return {}
    return {"values": list(range(len(frame.labels))), "labelExpr": f"{list(frame.labels)}[datum.value]"}


def _datum(place: int, row: Row) -> dict[str, Any]:
    end = row.value if row.high is None else max(row.value, row.high)
    kept = {"value": row.value, "low": row.low, "high": row.high, "end": end, "zero": 0.0}
    return {"row": place, "name": row.name, "says": row.says, "tip": row.tip, "tone": f"var(--{row.tone})", **kept}


def _marks(data: list[dict[str, Any]]) -> alt.Chart:
    import altair as alt

    chart = alt.Chart(alt.Data(values=data))
    return chart.encode(y=alt.Y("row:O", axis=None, sort="ascending"), description="tip:N")


def _line_at(x: float) -> Any:
    import altair as alt

    return alt.Chart(alt.Data(values=[{"x": x}])).mark_rule(strokeDash=[4, 3], color="var(--soft)").encode(x="x:Q")


def _both(
    data: list[dict[str, Any]], layers: Callable[[], list[Any]], ends: tuple[float, float], says: str, form: str
) -> dict[str, Markup]:
    """The drawing at both widths: ``layers`` between ``ends``, names above them and words behind them."""
    import altair as alt

    drawings = {}
    for kind, width in WIDTHS.items():
        named = [datum | {"name": shorten(datum["name"], int(width / LETTER))} for datum in data]
        room = 14 + LETTER * max((len(datum["says"]) for datum in data), default=0)
        high = ends[1] + (ends[1] - ends[0] or 1.0) * room / (width - room)
        x = alt.X(
            "end:Q",
            title=None,
            scale=alt.Scale(domain=[ends[0], high], nice=False, zero=False),
            axis=alt.Axis(format=form, tickCount=5, domain=False, ticks=False),
        )
        text = _marks(named)
        chart = alt.layer(
            *layers(),
            text.mark_text(align="left", dy=-9, fontSize=12, color="var(--ink)").encode(x=alt.value(0), text="name:N"),
            text.mark_text(align="left", dx=8, dy=8, fontSize=12, color="var(--soft)").encode(x=x, text="says:N"),
        ).properties(width=width, height=alt.Step(STEP), autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
        drawings[kind] = _svg(_dressed(chart, size=11), says)
    return drawings


def shorten(name: str, letters: int) -> str:
    """``name`` without its middle where it is longer than ``letters``."""
    if len(name) <= letters:
        return name
    tail = (letters - 1) * 2 // 5
    return f"{name[: letters - 1 - tail]}…{name[-tail:]}"


def _dressed(chart: Any, size: int) -> Any:
    """The looks all charts share."""
    import altair as alt

    axis = alt.AxisConfig(
        labelColor="var(--soft)",
        labelFontSize=size,
        gridColor="var(--line)",
        domainColor="var(--line)",
        tickColor="var(--line)",
    )
    chart = chart.configure(background="transparent", font="system-ui", padding=2, axis=axis)
    return chart.configure_view(stroke=None)


def _svg(chart: Any, says: str) -> Markup:
    """The drawing as an element to put into a page, ``says`` for those who cannot see it."""
    buffer = io.StringIO()
    chart.save(buffer, format="svg")
    root = ElementTree.fromstring(buffer.getvalue())
    _lean(root)
    root.attrib.pop("class", None)
    root.attrib.pop("version", None)
    root.attrib.update({"role": "img", "aria-label": says})
    ElementTree.register_namespace("", _SVG[1:-1])
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _lean(element: ElementTree.Element) -> None:
    """Titles in place of the attributes for readers of single marks; nothing that is not seen."""
    for child in list(element):
        unseen = child.get("display") == "none" or child.get("opacity") == "0"
        if unseen or (child.get("class") == "background" and child.get("fill") is None):
            element.remove(child)
            continue
        _lean(child)
    tip = element.get("aria-label") if element.get("role") == "graphics-symbol" else None
    if tip and len(element) == 0 and element.tag != f"{_SVG}text":
        ElementTree.SubElement(element, f"{_SVG}title").text = tip
    for name in (
        "role",
        "class",
        "font-family",
        "pointer-events",
        *[n for n in element.attrib if n.startswith("aria-")],
    ):
        element.attrib.pop(name, None)
    for name, value in element.attrib.items():
        if name in ("d", "transform", "x2", "y2"):
            element.set(name, _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.2f}", value))
