"""From records to figures: sums, ratios and their intervals. The words are defined in ``result``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from outrider.bench.paired import LEVEL, SPEED, standard_error, student_quantile
from outrider.bench.result import PARTS, AtContext, AtDepth, Figures, Interval, Ratio, Record

FEWEST = 3
"""Prompts that an interval needs: what two tell of their own spread is next to nothing."""

_FEW = {2: 4.303, 3: 3.182}
"""Student's t at 95 % for the few degrees of freedom that ``student_quantile`` does not cover."""

CONTEXT_EDGES = (0, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
"""Where buckets of context length begin; the last one is open."""


def interval(sums: np.ndarray) -> Interval | None:
    """Of ``(sum tokens / sum seconds) / (sum base tokens / sum base seconds)``, the columns of ``sums`` f64[prompts,4];
    None below ``FEWEST`` prompts.

    The standard error of the ratio's logarithm comes from the paired bootstrap, the number of errors from Student's t:
    the plain percentiles of a bootstrap over few prompts are too narrow.
    """
    prompts = len(sums)
    if prompts < FEWEST:
        return None
    tokens, seconds, base_tokens, base_seconds = sums.T
    ones = np.ones(prompts)
    sides = np.stack([np.stack([base_tokens, base_seconds, ones, ones], 1), np.stack([tokens, seconds, ones, ones], 1)])
    reach = _student(prompts - 1) * standard_error(sides.transpose(1, 0, 2), np.array(SPEED))
    value = _ratio(sums)
    return Interval(low=value * math.exp(-reach), high=value * math.exp(reach))


def _student(dof: int) -> float:
    """The quantile of Student's t that leaves (1 - LEVEL) / 2 above it."""
    return _FEW[dof] if dof in _FEW else student_quantile(1 - (1 - LEVEL) / 2, dof)


def _ratio(sums: np.ndarray) -> float:
    tokens, seconds, base_tokens, base_seconds = sums.sum(0)
    return float((tokens / seconds) / (base_tokens / base_seconds))


def decode_seconds(record: Record) -> float:
    return record.decode_seconds


def all_seconds(record: Record) -> float:
    return record.all_seconds


def speedup(
    records: Iterable[Record],
    base: Iterable[Record],
    baseline: str,
    seconds: Callable[[Record], float] = decode_seconds,
) -> Ratio | None:
    """Tokens per second of ``records`` over those of ``base``, on the answers that both have (equal ``Record.key``);
    None where there is nothing to compare. ``seconds`` chooses the time that counts."""
    sums = paired(records, base, seconds)
    if not len(sums):
        return None
    return Ratio(baseline=baseline, value=_ratio(sums), interval=interval(sums), prompts=len(sums))


def paired(
    records: Iterable[Record], base: Iterable[Record], seconds: Callable[[Record], float] = decode_seconds
) -> np.ndarray:
    """f64[prompts,4]: tokens, seconds, baseline tokens, baseline seconds of each prompt's answers on both sides.

    Where one side could not tell prefill from decoding, all seconds of both count. An answer without tokens or time,
    and its partner, say nothing and are left out.
    """
    others = {record.key: record for record in base}
    rows: dict[str, list[float]] = {}
    for record in records:
        other = others.get(record.key)
        if other is None:
            continue
        count = seconds if record.prefill_measured and other.prefill_measured else all_seconds
        values = (record.tokens, count(record), other.tokens, count(other))
        if min(values) <= 0:
            continue
        row = rows.setdefault(record.prompt, [0.0] * 4)
        for column, value in enumerate(values):
            row[column] += value
    return np.array(list(rows.values()), dtype=np.float64).reshape(-1, 4)


def figures(records: Sequence[Record], base: Sequence[Record], baseline: str) -> Figures:
    """Totals of ``records``, their speed-up over ``base``, and how many are identical."""
    return Figures(**totals(records, base, baseline))


def totals(records: Sequence[Record], base: Sequence[Record], baseline: str) -> dict[str, Any]:
    """The fields of ``Figures``."""
    fast = speedup(records, base, baseline)
    whole = speedup(records, base, baseline, all_seconds)
    seconds = {part: sum(record.seconds.get(part, 0.0) for record in records) for part in PARTS}
    emitted = sum(record.tokens for record in records)
    decoding = sum(time for part, time in seconds.items() if part != "prefill")
    calls, drafted, accepted = (
        _known_sum(records, name) for name in ("target_calls", "draft_tokens", "accepted_tokens")
    )
    compared = [record for record in records if record.compared]
    same = sum(record.difference is None for record in compared)
    kinds = Counter(record.difference.kind for record in compared if record.difference is not None)
    return {
        "prompts": len({record.prompt for record in records}),
        "answers": len(records),
        "emitted_tokens": emitted,
        "speedup": fast.value if fast else None,
        "interval": fast.interval if fast else None,
        "speedup_with_prefill": whole.value if whole else None,
        "tokens_per_second": emitted / decoding if decoding else 0.0,
        "tokens_per_second_with_prefill": emitted / sum(seconds.values()) if sum(seconds.values()) else 0.0,
        "target_calls": calls,
        "draft_tokens": drafted,
        "accepted_tokens": accepted,
        "mean_accepted_length": emitted / calls if calls else None,
        "acceptance_rate": accepted / drafted if drafted and accepted is not None else None,
        "acceptance_histogram": sum_lists([record.acceptance_histogram for record in records]),
        "by_depth": sum_depths(entry for record in records for entry in record.by_depth),
        "by_context": sum_contexts(entry for record in records for entry in record.by_context),
        "seconds": seconds,
        "compared": len(compared),
        "identical": same / len(compared) if compared else None,
        "identical_answers": same,
        "ties": kinds["tie"],
        "wrong": kinds["wrong"],
    }


def grouped(
    records: Sequence[Record],
    base: Sequence[Record],
    baseline: str,
    key: Callable[[Record], str],
) -> dict[str, Figures]:
    """``figures`` per value of ``key``, in order of first appearance."""
    parts: dict[str, list[Record]] = {}
    for record in records:
        parts.setdefault(key(record), []).append(record)
    return {name: figures(part, base, baseline) for name, part in parts.items()}


def bucket(context: int) -> int:
    """Index into ``CONTEXT_EDGES`` of the bucket that holds a context of that many tokens."""
    return int(np.searchsorted(CONTEXT_EDGES, context, side="right")) - 1


def sum_lists(lists: Iterable[Sequence[int]]) -> list[int]:
    """Histograms of different lengths added up."""
    total: list[int] = []
    for values in lists:
        total += [0] * (len(values) - len(total))
        for index, value in enumerate(values):
            total[index] += value
    return total


def sum_depths(entries: Iterable[AtDepth]) -> list[AtDepth]:
    """Added up by depth, shallowest first."""
    counts: dict[int, list[int]] = {}
    for entry in entries:
        row = counts.setdefault(entry.depth, [0, 0])
        row[0] += entry.drafted
        row[1] += entry.accepted
    return [AtDepth(depth=depth, drafted=counts[depth][0], accepted=counts[depth][1]) for depth in sorted(counts)]


def sum_contexts(entries: Iterable[AtContext]) -> list[AtContext]:
    """Added up by bucket, shortest first."""
    names = ("target_calls", "emitted_tokens", "draft_tokens", "accepted_tokens")
    counts: dict[tuple[int, int | None], Counter[str]] = {}
    for entry in entries:
        counter = counts.setdefault((entry.low, entry.high), Counter())
        for name in names:
            counter[name] += getattr(entry, name)
    return [
        AtContext(low=low, high=high, **{name: counts[low, high][name] for name in names})
        for low, high in sorted(counts, key=lambda pair: pair[0])
    ]


def _known_sum(records: Sequence[Record], name: str) -> int | None:
    """The sum of a count, None if some record does not know it."""
    values = [getattr(record, name) for record in records]
    return None if any(value is None for value in values) else sum(values)
