"""How many of a draft's first k nodes are accepted: running means per drafter, per kind of draft and per request.

Parents stand before their children, so a draft cut to its first k nodes is a draft, and one verified tree tells for
every k at once how many nodes of the accepted path it would have kept. That number is what is averaged here; chains and
trees are the same to it. Node indices are gathered in buckets (``EDGES``), single up to 8 and wider beyond.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

EDGES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512)
"""Numbers of drafted nodes at which drafts are cut, and between which they are told apart no further."""

_WINDOW = {"source": 128, "kind": 64, "row": 12}
"""Over how many drafts the means run."""
_TRUST = {"source": 2, "kind": 2, "row": 4}
"""How many drafts the more general estimate counts for beside them."""
_OPTIMISM = 0.8
"""Acceptance of each next token of a chain before anything is known."""
_FIRST = 0.7
"""The same for the first node of a tree; node j is worth 1/j of it."""
_FADE = 0.95
"""What evidence of nodes that are not drafted any more is worth after each further draft."""


class Kind(NamedTuple):
    """Drafts that are counted together."""

    source: int
    """Number of the drafter."""
    origin: str = ""
    """Of the first node."""
    size: int = 0
    """Class of the number of nodes; 0 where that says nothing."""
    branching: bool = False


@lru_cache(maxsize=1024)
def ladder(nodes: int) -> tuple[int, ...]:
    """The lengths at which a draft of ``nodes`` nodes may be cut: 0, the edges below it, and itself (the last edge,
    where it is longer)."""
    nodes = min(nodes, EDGES[-1])
    return (*EDGES[: bisect_left(EDGES, nodes)], nodes) if nodes > 0 else (0,)


def chain_tokens(alpha: float, length: int) -> float:
    """Tokens a step emits when each of ``length`` chained tokens is accepted with probability ``alpha`` if the one
    before was: (1 - alpha**(length+1)) / (1 - alpha), the target's own token included (Leviathan et al., arXiv
    2211.17192, equation 1)."""
    return length + 1.0 if alpha >= 1 else (1 - alpha ** (length + 1)) / (1 - alpha)


class Acceptance:
    """Running means per bucket: ``rate[i]`` of the nodes of bucket i, resting on ``weight[i]`` drafts, at most
    ``window``."""

    __slots__ = ("rate", "weight", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.rate = [0.0] * len(EDGES)
        self.weight = [0.0] * len(EDGES)

    def add(self, hits: Sequence[int], seen: int) -> None:
        """One draft: ``hits`` are the accepted node indices, ascending (the root is none of them); what became of
        nodes up to ``seen`` is known."""
        raise NotImplementedError

    @staticmethod
    def gains(rates: Sequence[float], lengths: Sequence[int]) -> list[float]:
        """Accepted nodes expected of the first ``lengths[i]`` nodes, a ladder."""
        raise NotImplementedError

    def over(self, wide: Sequence[float], trust: float) -> list[float]:
        """These rates, leaning on the more general ones in ``wide`` as if those were ``trust`` drafts."""
        lines = zip(self.weight, self.rate, wide, strict=False)
        return [(weight * rate + trust * other) / (weight + trust) for weight, rate, other in lines]

    def age(self, weight: float) -> None:
        """What is known counts as ``weight`` drafts at most."""
        self.weight = [min(w, weight) for w in self.weight]

    def _note(self, i: int, hits: int, tries: int) -> None:
        part = tries / (EDGES[i] - EDGES[i - 1])
        weight = self.weight[i] = min(self.weight[i] + part, self.window)
        self.rate[i] += (hits / tries - self.rate[i]) * part / weight


class Chained(Acceptance):
    """Of chains: the rate is that of tokens whose predecessor was accepted. Tokens behind a rejected one say nothing of
    themselves, so a time in which first tokens fail leaves what is known of later ones alone."""

    __slots__ = ()

    def add(self, hits: Sequence[int], seen: int) -> None:
        count = len(hits)
        for i, low in enumerate(EDGES[:-1], start=1):
            if low > count or low >= seen:
                return
            last = min(EDGES[i], seen)
            stood = min(count, last) - low
            self._note(i, stood, stood + (count < last))

    @staticmethod
    def gains(rates: Sequence[float], lengths: Sequence[int]) -> list[float]:
        gains, total, stands = [0.0], 0.0, 1.0
        for i in range(1, len(lengths)):
            rate = rates[i]
            for _ in range(lengths[i] - lengths[i - 1]):
                stands *= rate
                total += stands
            gains.append(total)
        return gains


class Branched(Acceptance):
    """Of trees: the rate is the share of nodes that are on the accepted path. Node j of a small tree is not node j of a
    large one: trees of other sizes tell only how far off the assumption is on the whole (``off``)."""

    __slots__ = ()

    def add(self, hits: Sequence[int], seen: int) -> None:
        place = 0
        for i, low in enumerate(EDGES[:-1], start=1):
            if low >= seen:
                self.weight[i] *= _FADE
                continue
            last, before = min(EDGES[i], seen), place
            while place < len(hits) and hits[place] <= last:
                place += 1
            self._note(i, place - before, last - low)

    @staticmethod
    def gains(rates: Sequence[float], lengths: Sequence[int]) -> list[float]:
        gains = [0.0]
        for i in range(1, len(lengths)):
            gains.append(gains[-1] + rates[i] * (lengths[i] - lengths[i - 1]))
        return gains


ASSUMED_CHAIN = (_OPTIMISM,) * len(EDGES)
ASSUMED_TREE = (
    0.0,
    *(sum(_FIRST / j for j in range(low + 1, high + 1)) / (high - low) for low, high in pairwise(EDGES)),
)
"""Rates before anything is known."""


class Scale:
    """Accepted nodes of all trees of a drafter over those that were assumed, from an assumption that was right."""

    __slots__ = ("accepted", "assumed")

    def __init__(self) -> None:
        self.accepted = self.assumed = float(_TRUST["source"])

    def add(self, hits: Sequence[int], seen: int) -> None:
        keep = 1 - 1 / _WINDOW["source"]
        self.accepted = keep * self.accepted + len(hits)
        self.assumed = keep * self.assumed + Branched.gains(ASSUMED_TREE, ladder(seen))[-1]

    @property
    def off(self) -> float:
        return self.accepted / self.assumed


class Book:
    """What is known of every drafter: engine-wide, per kind of draft, and per request.

    Each estimate leans on the more general one as far as its own evidence is thin (partial pooling), and the most
    general one on an optimistic start.
    """

    def __init__(self) -> None:
        self._chains: dict[int, Chained] = {}
        self._trees: dict[int, Scale] = {}
        self._kinds: dict[Kind, Acceptance] = {}
        self._rows: dict[int, dict[Kind, Acceptance]] = {}
        self._rates: dict[Kind, list[float]] = {}  # engine-wide, until something is added

    def add(self, kind: Kind, row: int, hits: Sequence[int], seen: int) -> None:
        """A draft of request ``row``; see ``Acceptance.add``."""
        make, own = Branched if kind.branching else Chained, self._rows.setdefault(row, {})
        if kind not in own:
            own[kind] = make(_WINDOW["row"])
            if kind not in self._kinds:
                self._kinds[kind] = make(_WINDOW["kind"])
                if kind.branching:
                    self._trees.setdefault(kind.source, Scale())
                else:
                    self._chains.setdefault(kind.source, Chained(_WINDOW["source"]))
        source = self._trees[kind.source] if kind.branching else self._chains[kind.source]
        for level in (source, self._kinds[kind], own[kind]):
            level.add(hits, seen)
        self._rates.clear()

    def gains(self, kind: Kind, row: int | None, nodes: int) -> list[float]:
        """Accepted nodes expected of a draft of ``nodes`` nodes cut at each length of ``ladder(nodes)``; ``row`` None:
        of any request."""
        lengths = ladder(nodes)
        rates = self._rates.get(kind) or self._wide(kind)
        own = None if row is None or row not in self._rows else self._rows[row].get(kind)
        if own is not None:
            rates = own.over(rates[: len(lengths)], _TRUST["row"])
        return (Branched if kind.branching else Chained).gains(rates, lengths)

    def _wide(self, kind: Kind) -> list[float]:
        """Rates, engine-wide."""
        if kind.branching:
            off = self._trees[kind.source].off if kind.source in self._trees else 1.0
            rates = [rate * off for rate in ASSUMED_TREE]
        elif kind.source in self._chains:
            source = self._chains[kind.source]
            first = source.over(ASSUMED_CHAIN[:2], _TRUST["source"])[1]
            # Of later tokens, where they were never reached, half of what first tokens teach.
            later = min((first + _OPTIMISM) / 2, _OPTIMISM)
            rates = source.over([_OPTIMISM, _OPTIMISM, *[later] * (len(EDGES) - 2)], _TRUST["source"])
        else:
            rates = list(ASSUMED_CHAIN)
        if kind in self._kinds:
            rates = self._kinds[kind].over(rates, _TRUST["kind"])
        self._rates[kind] = rates
        return rates

    def age(self, source: int, rows: Collection[int], weight: float = 1.0) -> None:
        """What these requests showed of drafter ``source`` before a pause counts as ``weight`` drafts from now on."""
        for row in rows:
            for kind, found in self._rows.get(row, {}).items():
                if kind.source == source:
                    found.age(weight)

    def keep(self, rows: Collection[int]) -> None:
        """Forget all requests but these."""
        self._rows = {row: found for row, found in self._rows.items() if row in rows}


@dataclass(slots=True)
class Followed:
    """A proposal held against the text that is really emitted, whether or not it was verified.

    Every exact rule emits a node's token below its parent if and only if it accepts that node (a token it has rejected
    has no mass left in the residual), so the text alone tells what would have been accepted, also of drafts that were
    cut or dropped: looking costs no forward.
    """

    kind: Kind
    tokens: Sequence[int]
    parents: Sequence[int]
    at: int = 0
    hits: list[int] = field(default_factory=list)

    def follow(self, emitted: Sequence[int]) -> bool:
        """Whether all is known once ``emitted`` has been added to the text."""
        size = len(self.tokens)
        for token in emitted:
            for node in range(self.at + 1, size):
                if self.parents[node] == self.at and self.tokens[node] == token:
                    break
            else:
                return True
            self.at = node
            self.hits.append(node)
        return self.at not in self.parents[self.at + 1 :]  # a leaf
