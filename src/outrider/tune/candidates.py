"""Which settings are tried: a grid for every method whose settings are known here, others as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import product
from typing import TYPE_CHECKING

from outrider.bench.choose import needs
from outrider.errors import ConfigError, SpecError
from outrider.registry import REGISTRY, preset
from outrider.tune.agreement import depth_of
from outrider.tune.trial import replayable
from outrider.types import Guarantee

if TYPE_CHECKING:
    from outrider.model.base import LanguageModel
    from outrider.params import SamplingParams

PLAIN = "plain"
_NOT_TRIED = {PLAIN, "auto"}
"""The baseline, and what the result is for."""

PLD_DEPTHS = (2, 3, 4, 6, 10, 16)
SAM_MATCHES = (1, 2, 3, 5)
SAM_LENGTHS = ((4, 4.0), (8, 2.0), (16, 2.0), (16, 4.0), (40, 4.0))
"""(depth, alpha)"""
TREE_NODES = (8, 16, 32, 48, 80)
DRAFT_DEPTHS = (1, 2, 3, 4, 5, 6, 8)


class Effort(IntEnum):
    """What finding out about a candidate takes, least first."""

    LOOK_UP = 0
    """Recorded text, and next to no time."""
    CHAIN = 1
    """Recorded text, read once by the draft model for chains of all lengths."""
    DRAFT_MODEL = 2
    """Recorded text, and the draft model's own drafting."""
    LIVE = 3
    """The target."""


@dataclass(frozen=True)
class Candidate:
    """A preset to try. ``nodes`` is the most it may draft per step."""

    name: str
    nodes: int
    effort: Effort
    uses_draft_model: bool = False
    depth: int = 0
    """Of the chains, where the effort is that."""

    @property
    def method(self) -> str:
        """The preset's name without its settings; of a priority ``a|b``, that of b."""
        return self.fallback.split("(")[0]

    @property
    def fallback(self) -> str:
        """Of a priority ``a|b``, b; else the whole."""
        return self.name.split("|")[-1].strip()

    @property
    def combined(self) -> bool:
        return self.fallback != self.name


@dataclass(frozen=True)
class Dropped:
    """A candidate that was not tried, or not to the end, and why."""

    name: str
    reason: str


def grid(draft_model: bool) -> list[str]:
    """Presets to try: settings of the known methods, every other registered preset with its defaults. Those that need
    a draft model are in it only with ``draft_model``."""
    found: list[str] = []
    for entry in REGISTRY.all():
        if entry.name in _NOT_TRIED or (set(entry.needs) - ({"draft_model"} if draft_model else set())):
            continue
        found += _GRIDS[entry.name]() if entry.name in _GRIDS else [entry.name]
    found += [f"sam(min_match=2)|token-recycling(nodes={nodes})" for nodes in TREE_NODES]
    if draft_model:
        found += [f"sam(min_match=3)|spec-decode(depth={depth})" for depth in DRAFT_DEPTHS[1:5]]
    return found


def _pld() -> list[str]:
    return [f"pld(depth={depth},min_ngram={least})" for least, depth in product((1, 2), PLD_DEPTHS)]


def _sam() -> list[str]:
    return [
        f"sam(min_match={least},depth={depth},alpha={alpha:g})"
        for least, (depth, alpha) in product(SAM_MATCHES, SAM_LENGTHS)
    ]


def _recycling() -> list[str]:
    return [f"token-recycling(nodes={nodes})" for nodes in TREE_NODES]


def _draft_model() -> list[str]:
    chains = [f"spec-decode(depth={depth})" for depth in DRAFT_DEPTHS]
    careful = [f"spec-decode(depth={depth},threshold={threshold})" for depth in (5, 8) for threshold in (0.3, 0.6)]
    trees = [f"spec-decode(depth={depth},structure=top-k,nodes={nodes})" for depth, nodes in ((3, 8), (4, 16), (5, 24))]
    return chains + careful + trees


_GRIDS = {"pld": _pld, "sam": _sam, "token-recycling": _recycling, "spec-decode": _draft_model}


def candidates(
    specs: Sequence[str] | None, target: LanguageModel, draft_model: bool, params: SamplingParams
) -> tuple[list[Candidate], list[Dropped]]:
    """``specs``, or the grid, as candidates for ``target``, and those of the grid that cannot be run on it.

    A preset that is named and cannot be run raises, and so does one that only keeps the distribution approximately:
    ``auto`` must never change the text.
    """
    found: list[Candidate] = []
    dropped: list[Dropped] = []
    for spec in dict.fromkeys(grid(draft_model) if specs is None else specs):
        if spec == PLAIN:
            continue
        try:
            found.append(_candidate(spec, target, draft_model, params))
        except SpecError as error:
            if specs is not None:
                raise
            dropped.append(Dropped(spec, str(error)))
    if not found:
        raise ConfigError("no candidates to try", hint="Name some: --candidates pld,sam.")
    return found, dropped


def _candidate(spec: str, target: LanguageModel, draft_model: bool, params: SamplingParams) -> Candidate:
    asks = needs(spec)
    if spec == "auto":
        raise ConfigError("'auto' as a candidate", why="It stands for the result", hint="Name what it may choose from.")
    if "draft_model" in asks and not draft_model:
        raise ConfigError(f"candidate {spec!r} needs a draft model", hint="Give --draft-model NAME.")
    parts = preset(spec)
    parts.check(target)
    if parts.guarantee is Guarantee.RELAXED:
        raise ConfigError(
            f"candidate {spec!r} changes the distribution of the text",
            hint="Name it with --preset when you want it: auto never chooses it.",
        )
    if parts.policy.core() is not parts.policy:
        raise ConfigError(
            f"candidate {spec!r} adapts its lengths by itself",
            why="Preset auto puts what is chosen under such a policy anyway",
            hint="Name what it adapts.",
        )
    uses_draft_model = "draft_model" in asks
    depth = depth_of(parts, params)
    if depth is not None:
        effort = Effort.CHAIN
    elif replayable(parts, params):
        effort = Effort.DRAFT_MODEL if uses_draft_model else Effort.LOOK_UP
    else:
        effort = Effort.LIVE
    return Candidate(spec, parts.policy.plan([]).nodes, effort, uses_draft_model, depth or 0)
