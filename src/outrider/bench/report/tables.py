"""The tables of the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from outrider.bench import metrics
from outrider.bench.report.words import NONE, Cell, colour, count, number, share, span
from outrider.bench.result import BASELINE, PARTS, BenchResult, Figures, Interval, PeerResult, PresetResult, Record

DIFFERENCES = 100
"""Differences listed one by one; the JSON file has them all."""


def fill(result: BenchResult, presets: Sequence[PresetResult]) -> dict[str, Any]:
    """The rows of every table of the page by name."""
    return {
        "heat": _heat(result, presets),
        "identity": [(preset.name, _identity(preset)) for preset in presets if preset.name != BASELINE],
        "differences": _differences(presets),
        "peers": [(peer, _peer(peer)) for peer in result.peers],
        "figures": [(preset.name, _figures(preset)) for preset in presets],
        "times": [(preset.name, _times(preset)) for preset in presets if preset.emitted_tokens],
        "prompts": _prompts(presets),
    }


def _heat(result: BenchResult, presets: Sequence[PresetResult]) -> dict[str, Any] | None:
    """Speed-up by group: the groups, and per preset a cell for each; None where there is one group only."""
    groups = list(result.suite.groups) or list(presets[0].groups)
    if len(groups) < 2 or len(presets) < 2:
        return None
    rows = [(preset.name, [_heat_cell(preset.groups.get(group), group) for group in groups]) for preset in presets[1:]]
    return {"groups": [(group, result.suite.groups.get(group, 0)) for group in groups], "rows": rows}


def _heat_cell(figures: Figures | None, group: str) -> Cell:
    if figures is None or not figures.speedup:
        return Cell(NONE, "soft", title=f"{group}: not measured")
    strength = min(1.0, abs(math.log2(figures.speedup)) / math.log2(2.5))
    interval = figures.interval
    title = f"{group}: {figures.speedup:.3f} ({span(interval) if interval else 'no interval'}), "
    title += count(figures.prompts, "prompt")
    tone = colour(interval)
    return Cell(f"{figures.speedup:.2f}", tone, round(strength, 3), title, span(interval, NONE) if interval else "")


def _identity(preset: PresetResult) -> list[Cell]:
    """What is promised, answers that are identical, near-ties, wrong."""
    if not preset.compared:
        return [Cell(preset.guarantee), Cell("not promised", "soft"), Cell(NONE, "soft"), Cell(NONE, "soft")]
    told = f"{preset.identical_answers:,} of {preset.compared:,}"
    tone = "bad" if preset.wrong else "" if preset.ties else "good"
    return [
        Cell(preset.guarantee),
        Cell(told, tone, below=share(preset.identical_answers, preset.compared)),
        Cell(f"{preset.ties:,}", "warn" if preset.ties else "soft"),
        Cell(f"{preset.wrong:,}", "bad" if preset.wrong else "soft"),
    ]


def _differences(presets: Sequence[PresetResult]) -> dict[str, Any]:
    """First differences, the wrong ones first."""
    found = [
        (preset.name, record, record.difference)
        for preset in presets
        for record in preset.records
        if record.difference is not None and record.difference.kind != "drawn"
    ]
    found.sort(key=lambda item: item[2].kind != "wrong")
    return {"shown": found[:DIFFERENCES], "all": len(found), "wrong": any(item[2].kind == "wrong" for item in found)}


def _peer(peer: PeerResult) -> list[Cell]:
    """Tokens per second, over its own baseline, over outrider's plain decoding, answers identical to those."""
    over = peer.over_plain
    alone = peer.speedup is None or peer.name == peer.baseline
    return [
        Cell(f"{peer.tokens_per_second:.1f}"),
        Cell("a baseline itself", "soft") if alone else _ratio(peer.speedup, peer.interval, f"over {peer.baseline}"),
        Cell(NONE, "soft") if over is None else _ratio(over.value, over.interval, "over outrider's plain"),
        Cell(share(peer.identical_answers, peer.compared)) if peer.compared else Cell(NONE, "soft"),
    ]


def _ratio(value: float | None, interval: Interval | None, over: str) -> Cell:
    held = f"{span(interval)}, {over}" if interval else f"no interval, {over}"
    return Cell(f"{number(value, '.2f')}×", colour(interval), below=held)


def _figures(preset: PresetResult) -> list[str]:
    """Every figure of a preset, as numbers."""
    based = preset.name != BASELINE
    memory = preset.peak_memory_bytes
    return [
        f"{preset.tokens_per_second:.2f}",
        f"{preset.tokens_per_second_with_prefill:.2f}",
        number(preset.speedup if based else None, ".3f"),
        span(preset.interval) if preset.interval and based else NONE,
        number(preset.speedup_with_prefill if based else None, ".3f"),
        number(preset.mean_accepted_length, ".3f"),
        number(preset.acceptance_rate, ".1%"),
        number(preset.emitted_tokens, ",d"),
        number(preset.target_calls, ",d"),
        number(preset.draft_tokens, ",d"),
        NONE if memory is None else f"{memory / 2**30:.2f} GiB",
    ]


def _times(preset: PresetResult) -> list[Cell]:
    """Milliseconds per emitted token by part, then together."""
    whole = sum(preset.seconds.values())
    cells = []
    for part in PARTS:
        seconds = preset.seconds.get(part, 0.0)
        below = f"{100 * seconds / whole:.1f} %" if whole else ""
        cells.append(Cell(f"{1000 * seconds / preset.emitted_tokens:.2f}", below=below))
    return [*cells, Cell(f"{1000 * whole / preset.emitted_tokens:.2f}")]


def _prompts(presets: Sequence[PresetResult]) -> list[tuple[Record, list[Cell]]]:
    """Per prompt, in the order of the suite: tokens per second of plain, and each preset's speed-up."""
    columns = [_by_prompt(preset.records) for preset in presets]
    rows = []
    for name, base in columns[0].items():
        tokens = sum(record.tokens for record in base)
        seconds = sum(record.decode_seconds for record in base)
        cells = [Cell(f"{tokens / seconds:.1f}" if seconds else NONE)]
        cells += [_prompt_cell(column.get(name, []), base) for column in columns[1:]]
        rows.append((base[0], cells))
    return rows


def _by_prompt(records: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.prompt, []).append(record)
    return found


def _prompt_cell(records: Sequence[Record], base: Sequence[Record]) -> Cell:
    sums = metrics.paired(records, base)
    if not len(sums):
        return Cell(NONE, "soft")
    tokens, seconds, base_tokens, base_seconds = sums[0].tolist()
    text = f"{(tokens / seconds) / (base_tokens / base_seconds):.2f}"
    kinds = {record.difference.kind for record in records if record.difference is not None}
    if "wrong" in kinds:
        return Cell(f"{text} ✗", "bad", title="wrong")
    return Cell(f"{text} ≈", "warn", title="near-tie") if "tie" in kinds else Cell(text)
