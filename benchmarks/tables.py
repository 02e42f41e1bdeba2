"""Markdown tables from results of ``outrider bench --json``, as they stand in docs/benchmarks.md.

python benchmarks/tables.py RESULT.json
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from outrider.bench.result import BenchResult, Figures


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def gain(figures: Figures) -> str:
    """Speed-up and its interval."""
    if figures.speedup is None:
        return "-"
    if figures.interval is None:
        return f"{figures.speedup:.2f}"
    return f"{figures.speedup:.2f} [{figures.interval.low:.2f}, {figures.interval.high:.2f}]"


def same(figures: Figures) -> str:
    """Identical answers, and what the others are."""
    if figures.identical is None:
        return "not promised"
    return f"{figures.identical_answers} of {figures.compared}, {figures.ties} ties, {figures.wrong} wrong"


def where(result: BenchResult) -> str:
    """Model, machine and commit."""
    facts, settings = result.provenance, result.settings
    machine, target = facts["machine"], facts["models"]["target"]
    place = f"{machine['cpu']}, {settings.threads} threads, {machine['capability']}"
    return f"{settings.model}, {target['dtype']}, {place}; commit {facts['commit']}"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    result = BenchResult.read(sys.argv[1])
    suite = result.suite
    length = f"{suite.prompts} prompts, up to {result.settings.max_tokens} tokens"
    print(f"{suite.name} {suite.version}, {length}; {where(result)}\n")
    rows = [
        [
            f"`{each.name}`",
            gain(each),
            f"{each.tokens_per_second:.1f}",
            f"{each.speedup_with_prefill:.2f}" if each.speedup_with_prefill else "-",
            f"{each.mean_accepted_length:.2f}" if each.mean_accepted_length else "-",
            "-" if each.acceptance_rate is None else f"{100 * each.acceptance_rate:.0f} %",
            same(each),
        ]
        for each in [*result.presets, *result.peers]
    ]
    names = [
        "preset",
        "speed-up [95 %]",
        "tokens/s",
        "with prefill",
        "tokens per call",
        "drafted tokens accepted",
        "identical",
    ]
    print(table(names, rows), end="\n\n")
    groups = list(result.presets[0].groups)
    rows = [
        [f"`{each.name}`", *(f"{value:.2f}" if (value := each.groups[group].speedup) else "-" for group in groups)]
        for each in result.presets[1:]
    ]
    print(table(["speed-up", *groups], rows), end="\n\n")
    rows = [
        [
            f"`{each.name}`",
            *(f"{value:.2f}" if (value := each.groups[group].mean_accepted_length) else "-" for group in groups),
        ]
        for each in result.presets[1:]
    ]
    print(table(["tokens per call", *groups], rows))


if __name__ == "__main__":
    main()
