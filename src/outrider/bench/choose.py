"""Which presets are measured: names with settings, ``all``, and what cannot be run here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from outrider import registry
from outrider.bench.result import BASELINE, LeftOut
from outrider.errors import ConfigError, SpecError
from outrider.registry import REGISTRY, preset

ALL = "all"


@dataclass(frozen=True)
class Chosen:
    """``presets``: the baseline, then what was asked for in that order; ``left_out``: members of "all" that cannot be
    run, and why."""

    presets: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()


def split(text: str) -> list[str]:
    """``"pld(depth=8,min_ngram=2),sam"`` at the commas outside parentheses. Raises ``ConfigError``."""
    specs, depth = [""], 0
    for char in text:
        depth += {"(": 1, ")": -1}.get(char, 0)
        if depth < 0:
            break
        if char == "," and depth == 0:
            specs.append("")
        else:
            specs[-1] += char
    if depth != 0:
        raise ConfigError(f"presets {text!r}", why="a parenthesis is missing", hint="Write pld(depth=8),sam.")
    specs = [spec.strip() for spec in specs]
    if not all(specs):
        raise ConfigError(f"presets {text!r}", why="a name is empty", hint="Write names with commas between: pld,sam.")
    return specs


def choose(specs: Sequence[str], *, draft_model: bool, try_out: Callable[[str], object] = preset) -> Chosen:
    """The presets to measure. ``try_out(spec)`` builds one and raises ``SpecError`` where it cannot be run; by default
    it asks only whether the name and its settings are right, which needs no model.

    A preset that is named raises; one that only "all" asks for is left out, with the reason.
    """
    named = [spec for spec in specs if spec != ALL]
    for spec in named:
        if named.count(spec) > 1:
            raise ConfigError(f"preset {spec!r} is given twice", hint="Name it once.")
        if not draft_model and "draft_model" in needs(spec):
            raise ConfigError(f"preset {spec!r} needs a draft model", hint="Give --draft-model NAME.")
        try_out(spec)
    if not specs:
        raise ConfigError("no presets", hint="Name some, or ask for all.")
    left_out: list[LeftOut] = []
    if ALL in specs:
        found = _everything(set(named), draft_model, try_out, left_out)
        at = list(specs).index(ALL)
        named = [*specs[:at], *found, *(spec for spec in specs[at:] if spec != ALL)]
    return Chosen((BASELINE, *(spec for spec in named if spec != BASELINE)), tuple(left_out))


def needs(spec: str) -> set[str]:
    """What the presets named in ``spec`` want a user to bring. Raises ``ConfigError`` for an unknown one."""
    return set(registry.needs(spec))


def _everything(
    named: set[str], draft_model: bool, try_out: Callable[[str], object], left_out: list[LeftOut]
) -> list[str]:
    """Names of all presets that can be run and are not named anyway; the others go to ``left_out``."""
    found = []
    for entry in REGISTRY.all():
        missing = set(entry.needs) - ({"draft_model"} if draft_model else set())
        if entry.name in named or entry.name == BASELINE:
            continue
        if missing:
            what = " and ".join(sorted(need.replace("_", " ") for need in missing))
            left_out.append(LeftOut(name=entry.name, reason=f"needs a {what}"))
            continue
        try:
            try_out(entry.name)
        except SpecError as error:
            left_out.append(LeftOut(name=entry.name, reason=str(error)))
        else:
            found.append(entry.name)
    return found
