"""The charts of the report: which figures go into which drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from outrider.bench import charts
from outrider.bench.charts import Frame, Point, Row, Stack
from outrider.bench.report.words import colour, span, told
from outrider.bench.result import BASELINE, BenchResult, Interval, PresetResult

TONES = {
    "prefill": ("prefill", "c7"),
    "draft": ("draft", "c2"),
    "target": ("target", "c1"),
    "verify": ("verify", "c4"),
    "other": ("host", "c5"),
}
"""Names and colours of the parts of ``seconds``, in the order of ``result.PARTS``."""

SURE = 20
"""Target calls behind a point of a line, below which it is drawn hollow."""

Drawing = dict[str, Markup]
"""By width, as in ``charts.WIDTHS``."""


def draw(result: BenchResult, presets: Sequence[PresetResult]) -> dict[str, Any]:
    """Every drawing of the page by name; None or empty where there is nothing to draw."""
    return {
        "speedups": _speedups(presets),
        "times": _times(presets),
        "lengths": _lengths(presets),
        "memory": _memory(presets),
        "depths": _depths(presets),
        "contexts": _contexts(presets),
        "against": _against(result, presets),
        "own": _own(result, presets),
        "parts": list(TONES.values()),
    }


def _speedups(presets: Sequence[PresetResult]) -> Drawing | None:
    rows = [_ratio_row(preset.name, preset.speedup, preset.interval, "plain") for preset in presets[1:]]
    drawn = [row for row in rows if row is not None]
    return charts.intervals(drawn, "Speed-up over plain decoding: " + told(drawn)) if drawn else None


def _ratio_row(name: str, value: float | None, interval: Interval | None, baseline: str, tone: str = "") -> Row | None:
    if value is None or not math.isfinite(value):
        return None
    held = span(interval) if interval else "no interval"
    low, high = (interval.low, interval.high) if interval else (None, None)
    tip = f"{name}: {value:.3f} times {baseline} ({held})"
    return Row(name, value, f"{value:.2f}×", tip, low, high, tone or colour(interval))


def _lengths(presets: Sequence[PresetResult]) -> Drawing | None:
    rows = []
    for preset in presets:
        length, rate = preset.mean_accepted_length, preset.acceptance_rate
        if length is not None:
            tip = f"{preset.name}: {length:.3f} tokens per target call, "
            tip += "nothing drafted" if rate is None else f"{rate:.1%} of drafted tokens accepted"
            rows.append(Row(preset.name, length, f"{length:.2f}", tip, tone="c7" if preset.name == BASELINE else "c1"))
    return charts.bars(rows, "Mean accepted length: " + told(rows), 1.0) if rows else None


def _memory(presets: Sequence[PresetResult]) -> Drawing | None:
    rows = []
    for preset in presets:
        if preset.peak_memory_bytes is not None:
            said = f"{preset.peak_memory_bytes / 2**30:.2f} GiB"
            rows.append(Row(preset.name, preset.peak_memory_bytes / 2**30, said, f"{preset.name}: {said}", tone="c7"))
    return charts.bars(rows, "Peak memory: " + told(rows)) if rows else None


def _times(presets: Sequence[PresetResult]) -> Drawing | None:
    """Milliseconds per emitted token, divided into parts."""
    stacks = []
    for preset in presets:
        whole = sum(preset.seconds.values())
        if not preset.emitted_tokens or not whole:
            continue
        parts = []
        for part, (name, tone) in TONES.items():
            seconds = preset.seconds.get(part, 0.0)
            each = 1000 * seconds / preset.emitted_tokens
            if seconds:
                parts.append((each, tone, f"{preset.name}, {name}: {each:.2f} ms per token, {seconds / whole:.0%}"))
        stacks.append(Stack(preset.name, f"{1000 * whole / preset.emitted_tokens:.1f} ms", parts))
    said = "; ".join(f"{stack.name} {stack.says}" for stack in stacks)
    return charts.stacks(stacks, f"Milliseconds per emitted token: {said}") if stacks else None


def _depths(presets: Sequence[PresetResult]) -> list[tuple[str, Markup]]:
    """A panel per preset: how often a draft that reached a depth was accepted there."""
    lines = {
        preset.name: [
            Point(
                at.depth,
                at.rate,
                f"{preset.name}, depth {at.depth}: {at.rate:.1%} ({at.accepted:,} of {at.drafted:,} calls)",
                at.drafted >= SURE,
            )
            for at in preset.by_depth
            if at.drafted
        ]
        for preset in presets
    }
    deepest = max((point.x for line in lines.values() for point in line), default=0)
    frame = Frame((0.5, max(2, deepest) + 0.5), (0, 1), y_format=".0%")
    return _panels(lines, frame, "acceptance by depth")


def _contexts(presets: Sequence[PresetResult]) -> list[tuple[str, Markup]]:
    """A panel per preset: mean accepted length by how many tokens came before."""
    lows = sorted({at.low for preset in presets for at in preset.by_context if at.target_calls})
    if len(lows) < 2:
        return []
    lines = {}
    for preset in presets[1:]:
        lines[preset.name] = [
            Point(
                lows.index(at.low),
                at.mean_accepted_length,
                f"{preset.name}, {at.low:,} tokens and more: {at.mean_accepted_length:.2f} ({at.target_calls:,} calls)",
                at.target_calls >= SURE,
            )
            for at in preset.by_context
            if at.target_calls
        ]
    highest = max((point.y for line in lines.values() for point in line), default=1)
    labels = [str(low) if low < 1024 else f"{low // 1024}k" for low in lows]
    frame = Frame((-0.3, len(lows) - 0.7), (1, max(1.5, highest)), labels, ".1f")
    return _panels(lines, frame, "mean accepted length by context length")


def _panels(lines: dict[str, list[Point]], frame: Frame, what: str) -> list[tuple[str, Markup]]:
    drawn = {name: line for name, line in lines.items() if line}
    panels = []
    for name, line in drawn.items():
        others = [other for of, other in drawn.items() if of != name]
        said = ", ".join(f"{frame.labels[int(p.x)] if frame.labels else int(p.x)}: {p.y:.2f}" for p in line)
        panels.append((name, charts.panel(line, others, frame, f"{name}, {what}: {said}")))
    return panels


def _against(result: BenchResult, presets: Sequence[PresetResult]) -> Drawing | None:
    """Presets and peers on one scale: over outrider's plain decoding."""
    rows = [_ratio_row(preset.name, preset.speedup, preset.interval, "plain", "c1") for preset in presets[1:]]
    for peer in result.peers:
        if peer.over_plain is not None:
            ratio = peer.over_plain
            rows.append(_ratio_row(peer.name, ratio.value, ratio.interval, "outrider's plain decoding", "c2"))
    return _compared(rows, "Speed over outrider's plain decoding: ") if result.peers else None


def _own(result: BenchResult, presets: Sequence[PresetResult]) -> Drawing | None:
    """Presets and peers, each over its own program without drafting."""
    rows = [_ratio_row(preset.name, preset.speedup, preset.interval, "plain", "c1") for preset in presets[1:]]
    others = [
        _ratio_row(peer.name, peer.speedup, peer.interval, peer.baseline, "c2")
        for peer in result.peers
        if peer.name != peer.baseline
    ]
    return _compared(rows + others, "Speed over the same program's own baseline: ") if any(others) else None


def _compared(rows: Sequence[Row | None], says: str) -> Drawing | None:
    drawn = sorted((row for row in rows if row is not None), key=lambda row: -row.value)
    return charts.intervals(drawn, says + told(drawn)) if drawn else None
