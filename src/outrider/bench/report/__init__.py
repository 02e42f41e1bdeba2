"""The HTML report of ``outrider bench``: one self-contained page with charts, for light and dark screens alike.

``words`` says numbers, ``drawings`` and ``tables`` choose the figures, ``outrider.bench.charts`` draws, and the
template ``pages/bench.html`` puts them in order.
"""

from __future__ import annotations

from collections.abc import Sequence

from outrider.bench.charts import require
from outrider.bench.report import drawings, tables
from outrider.bench.report.words import Cell, breakable, colour, count, level, share, span
from outrider.bench.result import BASELINE, BenchResult, PresetResult
from outrider.pages import render

__all__ = ["page", "require"]


def page(result: BenchResult) -> str:
    """The report. Everything that comes from outside (names of presets, prompts, models, texts) is escaped.

    Raises ``ConfigError`` where the packages that draw the charts are missing; ``require`` asks beforehand.
    """
    require()
    presets = _ordered(result)
    return render(
        "bench.html",
        title=f"How fast {result.settings.model} decodes",
        provenance=result.provenance,
        result=result,
        presets=presets,
        lead=_lead(result),
        headline=_headline(result, presets),
        cards=_cards(result, presets),
        wrong=[preset for preset in presets if preset.wrong],
        drawn=drawings.draw(result, presets),
        tables=tables.fill(result, presets),
        level=level(result),
        breakable=breakable,
    )


def _ordered(result: BenchResult) -> list[PresetResult]:
    """The baseline first, then the fastest."""
    return sorted(result.presets, key=lambda preset: (preset.name != BASELINE, -(preset.speedup or 0.0)))


def _best(presets: Sequence[PresetResult]) -> PresetResult | None:
    """The fastest preset that is not wrong anywhere."""
    for preset in presets:
        if preset.name != BASELINE and preset.speedup is not None and not preset.wrong:
            return preset
    return None


def _lead(result: BenchResult) -> str:
    suite, settings = result.suite, result.settings
    greedy = "greedy" if settings.temperature == 0 else f"temperature {settings.temperature:g}"
    prompts = count(suite.prompts, "prompt")
    draft = f", draft model {settings.draft_model}" if settings.draft_model else ""
    return f"Suite {suite.name}, version {suite.version}: {prompts}, {settings.max_tokens} tokens each, {greedy}{draft}"


def _headline(result: BenchResult, presets: Sequence[PresetResult]) -> str:
    """The finding in one sentence."""
    best = _best(presets)
    if best is None or best.speedup is None:
        wrong = any(preset.wrong for preset in presets)
        return "Every preset was wrong somewhere." if wrong else "No preset could be compared with plain decoding."
    value, interval = f"{best.speedup:.2f} times", best.interval
    if interval is None:
        return f"{best.name} measured {value} the speed of plain decoding; too few prompts for an interval."
    held = f"({level(result)} interval {span(interval)})"
    if interval.low > 1:
        return f"{best.name} decodes {value} as fast as plain decoding {held}."
    if interval.high < 1:
        return f"No preset is faster than plain decoding here: the best, {best.name}, reaches {value} its speed {held}."
    return f"No preset is measurably faster than plain decoding: {best.name} comes to {value} its speed {held}."


def _cards(result: BenchResult, presets: Sequence[PresetResult]) -> list[tuple[str, Cell]]:
    cards = []
    best = _best(presets)
    if best is not None and best.speedup is not None:
        name = "best preset" if best.interval and best.interval.low > 1 else "fastest measured"
        cards.append((name, Cell(best.name, below=f"of {count(len(presets) - 1, 'preset')}")))
        told = f"{level(result)}: {span(best.interval)}" if best.interval else "no interval"
        cards.append(("speed-up over plain", Cell(f"{best.speedup:.2f}×", colour(best.interval), below=told)))
    fast = best or presets[0]
    plain = f"plain: {presets[0].tokens_per_second:.1f}" if fast is not presets[0] else ""
    cards.append(("tokens per second", Cell(f"{fast.tokens_per_second:.1f}", below=plain)))
    if best is not None and best.mean_accepted_length is not None:
        rate = "" if best.acceptance_rate is None else f"{best.acceptance_rate:.0%} of drafted tokens accepted"
        cards.append(("tokens per target call", Cell(f"{best.mean_accepted_length:.2f}", below=rate)))
    compared = sum(preset.compared for preset in presets[1:])
    if compared:
        same = sum(preset.identical_answers for preset in presets[1:])
        ties, wrong = (sum(getattr(preset, kind) for preset in presets[1:]) for kind in ("ties", "wrong"))
        tone = "bad" if wrong else "" if ties else "good"
        told = f"{same:,} of {compared:,}; {count(ties, 'near-tie')}, {wrong:,} wrong"
        cards.append(("answers identical to plain", Cell(share(same, compared), tone, below=told)))
    return cards
