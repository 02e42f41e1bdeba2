"""The summary under an answer: counts by origin, speed, acceptance, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from outrider.cli._paint import TARGET, Palette

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from outrider.cli._answer import Answer
    from outrider.run.request import Stats

_BARS = "▁▂▃▄▅▆▇█"
# Drafted tokens accepted in one call, in groups that fit on one line.
_GROUPS = ((0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 8), (9, 16), (17, 32), (33, None))


def legend(counts: Mapping[str, int], palette: Palette) -> Text:
    """Who wrote how many of the tokens, in their colours."""
    from rich.text import Text

    line = Text()
    for name in sorted(counts, key=lambda name: (name != TARGET, -counts[name])):
        line.append("■ ", palette.style(name))
        line.append(f"{name} {counts[name]}   ", palette.style(name))
    line.rstrip()
    return line


def summary(
    console: Console, answer: Answer, counts: Mapping[str, int], palette: Palette, seed: int | None = None
) -> None:
    """All that is worth telling about one answer; ``seed`` where one was drawn for it."""
    stats = answer.stats
    if not console.is_terminal:
        console.print()
    console.rule(style="dim", characters="─" if _unicode(console) else "-")
    if sum(counts.values()):
        console.print(legend(counts, palette))
    reused = f" ({stats.reused_tokens} reused)" if stats.reused_tokens else ""
    rows = [
        ("speed", f"{stats.tokens_per_second:.1f} tokens/s: {_tokens(stats)} in {stats.decode_seconds:.2f} s"),
        ("prompt", f"{_count(stats.prompt_tokens, 'token')}{reused} in {stats.seconds['prefill']:.2f} s"),
    ]
    if stats.target_calls:
        calls = f"in {_count(stats.target_calls, 'call')} of the model"
        rows.append(("accepted", f"{stats.mean_accepted_length:.2f} tokens per call, {calls}"))
    for name, text in rows:
        console.print(_row(name, text))
    if stats.accepted_tokens:
        histogram(console, stats.acceptance_histogram)
    if stats.decode_seconds:
        console.print(_row("time", split(stats)))
    drawn = "" if seed is None else f"; --seed {seed} gives the same answer again"
    console.print(_row("end", answer.ending() + drawn))


def histogram(console: Console, counts: Sequence[int]) -> None:
    """Three short lines: drafted tokens accepted per call, a bar each, the number of calls."""
    groups: list[tuple[str, int]] = []
    for low, high in _GROUPS:
        if low >= len(counts):
            break
        label = str(low) if high == low else f"{low}+" if high is None else f"{low}-{high}"
        groups.append((label, sum(counts[low : None if high is None else high + 1])))
    top = max(number for _, number in groups) or 1
    bars = [_BARS[(number * (len(_BARS) - 1) + top - 1) // top] if number else "" for _, number in groups]
    wide = [max(3, len(label), len(str(number))) for label, number in groups]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(cell.rjust(width) for cell, width in zip(cells, wide, strict=True))

    console.print(_row("drafts", line([label for label, _ in groups]) + "  accepted in one call"))
    if _unicode(console):
        console.print(_row("", line([bar * 3 for bar in bars]), "green"))
    console.print(_row("", line([str(number or "·") for _, number in groups]) + "  calls"))


def split(stats: Stats) -> str:
    """Where the decoding time went."""
    parts = {name: seconds for name, seconds in stats.seconds.items() if name != "prefill"}
    whole = sum(parts.values())
    return ", ".join(f"{name} {100 * seconds / whole:.0f} %" for name, seconds in parts.items())


def comparison(console: Console, block: Mapping[str, Any], preset: str) -> None:
    """Speed with and without drafting, and whether the text is the same."""
    fast, plain = block["preset"], block["plain"]
    wide = max(len(preset), 5) + 2
    console.rule(style="dim", characters="─" if _unicode(console) else "-")
    console.print(f"{'':{wide}}{'tokens/s':>10}{'tokens/call':>13}{'seconds':>10}", style="dim")
    for name, side in ((preset, fast), ("plain", plain)):
        speed, length = side["tokens_per_second"], side["mean_accepted_length"]
        console.print(f"{name:{wide}}{speed:>10.1f}{length:>13.2f}{side['seconds']:>10.2f}", soft_wrap=True)
    runs = _count(block["runs"], "run")
    console.print(
        f"speed-up {block['speedup']:.2f}x",
        style="bold green" if block["speedup"] > 1 else "bold yellow",
        end="",
    )
    console.print(f", {block['speedup_with_prompt']:.2f}x with reading the prompt", soft_wrap=True)
    console.print(f"({runs} each, in turns, after a warm-up)", style="dim", soft_wrap=True)
    console.print(verdict(block), style="green" if block["identical"] else "yellow", soft_wrap=True)


def verdict(block: Mapping[str, Any]) -> str:
    """One sentence about the token ids of both."""
    if block["identical"]:
        return f"the token ids are identical (all {block['tokens']})"
    at = block["first_difference"]
    pair = f"{at['preset_text']!r} against {at['plain_text']!r} (plain)"
    where = f"the token ids differ from position {at['position']} on: {pair}"
    hint = "" if at["kind"] != "wrong" else f" ({block['dtype']}; outrider verify looks closer)"
    return f"{where}; {at['why']}{hint}"


def _row(name: str, text: str, style: str = "") -> Text:
    from rich.text import Text

    line = Text(f"{name:<10}", "dim")
    line.append(text, style)
    return line


def _tokens(stats: Stats) -> str:
    return _count(stats.emitted_tokens, "token")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _unicode(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")
