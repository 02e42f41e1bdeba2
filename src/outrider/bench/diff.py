"""Two results of ``outrider bench`` set against each other, with a verdict that the data can carry (see ``paired``).

Between two runs a machine drifts, and no resampling of prompts shows it. Speed-ups are measured against plain in turns
inside each run and do not contain the drift: they carry the verdict of every preset but plain itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from outrider.bench.conditions import blocking, machines, other
from outrider.bench.paired import FASTER, LEVEL, SAME, SLOWER, SPEED, SPEEDUP, Change, change
from outrider.bench.result import BenchResult, FirstDifference, PresetResult, Record

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

APART = "not comparable"

_SHOWN = 10
"""Regressions listed one by one in the terminal."""

Key = tuple[str, int]
"""Prompt and turn."""


@dataclass(frozen=True)
class Move:
    """How one preset moved, in all or in one group. ``speed`` is None on different machines, ``speedup`` for plain."""

    speed: Change | None
    speedup: Change | None
    verdict: str

    @property
    def carrier(self) -> Change | None:
        """The change that the verdict speaks of."""
        return self.speedup or self.speed

    def as_dict(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "tokens_per_second": self.speed.as_dict() if self.speed else None,
            "speedup": self.speedup.as_dict() if self.speedup else None,
        }


@dataclass(frozen=True)
class PresetChange:
    """``accepted`` and ``identical``: mean accepted length and share of identical answers in A and in B, over the
    answers that both have; None where it is not known or not promised."""

    name: str
    total: Move
    groups: dict[str, Move]
    accepted: tuple[float | None, float | None]
    identical: tuple[float | None, float | None]

    @property
    def headline(self) -> str:
        """Such as "sam -20.1 %"; plain, which has no speed-up, is told apart."""
        itself = "" if self.total.speedup else " itself"
        return f"{self.name}{itself} {_percent(self.total.carrier)}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.total.as_dict(),
            "mean_accepted_length": list(self.accepted),
            "identical": list(self.identical),
            "groups": {group: move.as_dict() for group, move in self.groups.items()},
        }


@dataclass(frozen=True)
class Regression:
    """An answer that was right in A ("identical", or "tie") and is wrong in B."""

    preset: str
    prompt: str
    turn: int
    was: Literal["identical", "tie"]
    difference: FirstDifference

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"difference": self.difference.model_dump()}


@dataclass(frozen=True)
class Diff:
    """What :func:`compare` found. ``reasons`` say why nothing can be compared (``presets`` is then empty), ``machine``
    why tokens per second cannot, ``notes`` what else differs."""

    regressions: list[Regression]
    presets: list[PresetChange]
    reasons: list[str] = field(default_factory=list)
    machine: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)

    @property
    def comparable(self) -> bool:
        return not self.reasons

    @property
    def regressed(self) -> bool:
        """Whether B is wrong where A was right, or some preset is slower."""
        return bool(self.regressions) or any(preset.total.verdict == SLOWER for preset in self.presets)

    @property
    def exit_code(self) -> int:
        """1: regressed; 2: not comparable; 0: neither."""
        return 1 if self.regressed else 0 if self.comparable else 2

    @property
    def verdict(self) -> str:
        """One line."""
        if not self.comparable:
            return f"Not comparable: {'; '.join(self.reasons)}."
        parts = []
        if self.regressions:
            names = sorted({regression.preset for regression in self.regressions})
            answers = _count(len(self.regressions), "answer")
            parts.append(f"B is wrong in {answers} that A had right ({', '.join(names)})")
        for verdict in (SLOWER, FASTER):
            moved = [preset for preset in self.presets if preset.total.verdict == verdict]
            if moved:
                told = ", ".join(preset.headline for preset in moved)
                parts.append(f"B is {verdict}: {told}")
        text = "; ".join(parts) or SAME
        return f"{text[0].upper()}{text[1:]}."

    def as_dict(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "regressed": self.regressed,
            "comparable": self.comparable,
            "exit_code": self.exit_code,
            "level": LEVEL,
            "regressions": [regression.as_dict() for regression in self.regressions],
            "presets": [preset.as_dict() for preset in self.presets],
            "reasons": self.reasons,
            "machine": self.machine,
            "notes": self.notes,
            "only_a": self.only_a,
            "only_b": self.only_b,
        }


def compare(a: BenchResult, b: BenchResult) -> Diff:
    """B against A: presets matched by name, answers by prompt and turn. Peers are other programs and are left out."""
    there = [preset.name for preset in b.presets]
    names = [preset.name for preset in a.presets if preset.name in there]
    only_a = [preset.name for preset in a.presets if preset.name not in there]
    only_b = [name for name in there if name not in names]
    reasons, notes = blocking(a, b), other(a, b)
    if not names:
        reasons.append("no preset in common")
    if not reasons and not {record.prompt for record in a.plain.records} & {
        record.prompt for record in b.plain.records
    }:
        reasons.append("no prompt in common")
    if reasons:
        return Diff([], [], reasons, notes=notes, only_a=only_a, only_b=only_b)
    machine = machines(a, b)
    presets = _changes(a, b, names, speeds=not machine)
    regressions = [found for name in names for found in _regressions(a.preset(name), b.preset(name))]
    notes += _plain_notes(a, b, presets)
    return Diff(regressions, presets, machine=machine, notes=notes, only_a=only_a, only_b=only_b)


def _changes(a: BenchResult, b: BenchResult, names: Sequence[str], speeds: bool) -> list[PresetChange]:
    """Every preset of ``names``, the baseline first; ``speeds``: whether tokens per second may be compared."""
    groups = [*b.suite.groups]
    plain: dict[str | None, Change | None] = {}
    found = []
    for name in names:
        old, new = a.preset(name), b.preset(name)
        rows, keys = _paired(_answers(a, old), _answers(b, new))
        of = {record.prompt: record.group for record in new.records}
        moves: dict[str | None, Move] = {}
        for group in (None, *groups):
            sums = np.array([row for prompt, row in rows.items() if group in (None, of[prompt])]).reshape(-1, 2, 4)
            comparisons = len(names) * (1 if group is None else len(groups))
            speed = change(sums, SPEED, comparisons) if speeds else None
            speedup = None if name == new.baseline else change(sums, SPEEDUP, comparisons)
            if name == new.baseline:
                plain[group] = speed
            moves[group] = Move(speed, speedup, _verdict(speed, speedup, plain.get(group)))
        found.append(
            PresetChange(
                name=name,
                total=moves.pop(None),
                groups={str(group): move for group, move in moves.items() if move.carrier is not None},
                accepted=(_accepted(old, keys), _accepted(new, keys)),
                identical=(_identical(old, keys), _identical(new, keys)),
            )
        )
    return found


def _verdict(speed: Change | None, speedup: Change | None, plain: Change | None) -> str:
    """A speed-up that moved only because plain moved the other way is no move of the preset."""
    if speedup is None:
        return speed.verdict if speed else APART
    moved = speedup.verdict
    if speed is None or plain is None or moved == SAME or speed.verdict == moved:
        return moved
    return moved if plain.verdict in (SAME, moved) else SAME


def _answers(result: BenchResult, preset: PresetResult) -> dict[Key, list[float]]:
    """Per prompt and turn, all runs together: tokens, seconds, the baseline's tokens, the baseline's seconds."""
    base = {record.key: record for other in result.presets if other.name == preset.baseline for record in other.records}
    sums: dict[Key, list[float]] = {}
    for record in preset.records:
        other = base.get(record.key)
        if other is None:
            continue
        values = (record.tokens, record.decode_seconds, other.tokens, other.decode_seconds)
        if all(values):
            row = sums.setdefault((record.prompt, record.turn), [0.0] * 4)
            row[:] = [have + more for have, more in zip(row, values, strict=True)]
    return sums


def _paired(a: dict[Key, list[float]], b: dict[Key, list[float]]) -> tuple[dict[str, list[list[float]]], set[Key]]:
    """Per prompt f64[2,4] as :func:`change` takes it, over the turns that both sides have; and which those are."""
    rows: dict[str, list[list[float]]] = {}
    keys = a.keys() & b.keys()
    for key in sorted(keys):
        pair = rows.setdefault(key[0], [[0.0] * 4, [0.0] * 4])
        for row, side in zip(pair, (a, b), strict=True):
            row[:] = [have + more for have, more in zip(row, side[key], strict=True)]
    return rows, keys


def _prompts(result: BenchResult) -> set[str]:
    return {record.prompt for preset in result.presets for record in preset.records}


def _accepted(preset: PresetResult, keys: set[Key]) -> float | None:
    records = [record for record in preset.records if (record.prompt, record.turn) in keys]
    calls = [record.target_calls for record in records if record.target_calls is not None]
    if len(calls) < len(records) or not sum(calls):
        return None
    return sum(record.tokens for record in records) / sum(calls)


def _identical(preset: PresetResult, keys: set[Key]) -> float | None:
    compared = [record for record in preset.records if record.compared and (record.prompt, record.turn) in keys]
    return sum(record.difference is None for record in compared) / len(compared) if compared else None


def _regressions(old: PresetResult, new: PresetResult) -> list[Regression]:
    """Answers of ``new`` that are wrong in some run, where every run of ``old`` was identical or a tie."""
    before = _kinds(old.records)
    found: dict[Key, Regression] = {}
    for record in new.records:
        key = record.prompt, record.turn
        difference = record.difference
        if difference is None or difference.kind != "wrong" or key in found:
            continue
        kinds = before.get(key)
        if kinds and "wrong" not in kinds:
            found[key] = Regression(new.name, *key, "tie" if "tie" in kinds else "identical", difference)
    return list(found.values())


def _kinds(records: Iterable[Record]) -> dict[Key, set[str]]:
    """Per prompt and turn what the runs that were compared gave."""
    kinds: dict[Key, set[str]] = {}
    for record in records:
        if record.compared:
            kind = record.difference.kind if record.difference else "identical"
            kinds.setdefault((record.prompt, record.turn), set()).add(kind)
    return kinds


def _plain_notes(a: BenchResult, b: BenchResult, presets: Sequence[PresetChange]) -> list[str]:
    """What plain decoding says about the two runs themselves."""
    notes = []
    for preset in presets:
        if preset.total.speedup is None and preset.total.verdict in (FASTER, SLOWER):
            told = f"{preset.name} itself is {preset.total.verdict} in B ({_percent(preset.total.speed)})"
            notes.append(f"{told}: the machine or the engine, which speed-ups do not contain")
    texts = [{record.key: record.token_ids for record in result.presets[0].records} for result in (a, b)]
    common = texts[0].keys() & texts[1].keys()
    changed = sum(texts[0][key] != texts[1][key] for key in common)
    if changed and a.presets[0].name == b.presets[0].name:
        notes.append(f"{a.presets[0].name} itself answers {changed} of {len(common)} differently in B")
    return notes


def show(console: Console, diff: Diff) -> None:
    """The verdict, what is wrong, the table of presets, the groups that moved, and what else differs."""
    from rich.text import Text

    def line(text: str, style: str = "dim") -> None:
        console.print(Text(_clean(text, console.encoding), style), soft_wrap=True)

    style = "bold red" if diff.regressed else "bold yellow" if not diff.comparable else "bold"
    if not diff.regressed and any(preset.total.verdict == FASTER for preset in diff.presets):
        style = "bold green"
    line(diff.verdict, style)
    for regression in diff.regressions[:_SHOWN]:
        line(f"  wrong: {_told(regression)}", "red")
    if len(diff.regressions) > _SHOWN:
        line(f"  and {len(diff.regressions) - _SHOWN} more (--json lists all)", "red")
    if diff.presets:
        console.print()
        console.print(_table(diff, console.encoding))
        most = max((preset.total.carrier.prompts for preset in diff.presets if preset.total.carrier), default=0)
        line(f"{_count(most, 'prompt')} in common; all intervals together hold at {100 * LEVEL:.0f} %")
    for preset in diff.presets:
        for group, move in preset.groups.items():
            if move.verdict in (FASTER, SLOWER):
                colour = "red" if move.verdict == SLOWER else "green"
                told = f"{preset.name}, {group}: {move.verdict} {_percent(move.carrier, interval=True)}"
                line(told, colour)
    for title, lines in (
        ("Tokens per second are not compared, the machines differ", diff.machine),
        ("What else differs", diff.notes),
        ("Only in A", diff.only_a),
        ("Only in B", diff.only_b),
    ):
        if lines:
            line(f"{title}: {'; '.join(lines)}")


def _table(diff: Diff, encoding: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=False)
    table.add_column("preset", overflow="fold", min_width=14)
    for figure in ("tokens/s", "speed-up", "accepted"):
        table.add_column(figure, justify="right", no_wrap=True)
    colours = {FASTER: "green", SLOWER: "red"}
    for preset in diff.presets:
        total = preset.total
        name = Text(_clean(preset.name, encoding) + "\n")
        name.append(_short(total), colours.get(total.verdict, "dim"))
        lengths = " → ".join("?" if length is None else f"{length:.2f}" for length in preset.accepted)
        cells = (_cell(total.speed, ".1f"), _cell(total.speedup, ".2f"), [lengths])
        table.add_row(name, *("\n".join(_clean(line, encoding) for line in lines) for lines in cells))
    return table


def _cell(change: Change | None, form: str) -> list[str]:
    return [f"{change.before:{form}} → {change.after:{form}}", _percent(change, interval=True)] if change else []


def _short(move: Move) -> str:
    if move.verdict != SAME:
        return move.verdict
    alone = move.speed is None or move.speed.verdict == SAME
    return "no difference" if alone else "moved as plain did"


def _percent(change: Change | None, interval: bool = False) -> str:
    """Such as "+12.0 % (+10.1 to +13.9)"."""
    if change is None:
        return ""
    text = f"{100 * (change.ratio - 1):+.1f} %"
    if not interval:
        return text
    if change.interval is None:
        return f"{text} (too few prompts)"
    low, high = (100 * (edge - 1) for edge in (change.interval.low, change.interval.high))
    return f"{text} ({low:+.1f} to {high:+.1f})"


def _told(regression: Regression) -> str:
    at = regression.difference
    turn = f", turn {regression.turn + 1}" if regression.turn else ""
    was = "identical" if regression.was == "identical" else "a near-tie"
    gap = "" if at.gap is None else f", logits {at.gap:.2g} apart"
    pair = f"{at.found_text!r} for {at.wanted_text!r}"
    return f"{regression.preset}, prompt {regression.prompt}{turn}: {pair} at token {at.position}{gap} (was {was})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _clean(text: str, encoding: str) -> str:
    """Names come from files: control characters must not reach a terminal, nor what it cannot write."""
    if not encoding.lower().startswith("utf"):
        text = text.replace("→", "->").encode(encoding, "replace").decode(encoding)
    return "".join(char if char.isprintable() else "?" for char in text)
