"""How many of a draft's first k nodes are accepted: running means per drafter, per length and per request.

Parents stand before their children, so a draft cut to its first k nodes is a draft, and one verified tree tells for
every k at once how many nodes of the accepted path it would have kept. That number is what is averaged here; chains and
trees are the same to it. Node indices are gathered in buckets (``EDGES``), single up to 8 and wider beyond.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

EDGES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512)
"""Numbers of drafted nodes at which drafts are cut, and between which they are told apart no further."""

_WINDOW = {"source": 128, "class": 64, "row": 12}
"""Over how many drafts the means run."""
_TRUST = {"source": 2, "class": 2, "row": 4}
"""How many drafts the more general estimate counts for beside them."""
_OPTIMISM = 0.8
"""What each next token of a chain is thought to be worth before anything is known."""
_FIRST = 0.7
"""The same for the first node of a tree; node j is worth 1/j of it."""

Key = tuple[int, str, int]
"""Whose draft: number of the drafter, origin of its first node, class of its length."""


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


@lru_cache(maxsize=2)
def _prior(branching: bool) -> tuple[float, ...]:
    """Per bucket, the acceptance of a node before anything is known."""
    worth: Callable[[int], float] = (lambda j: _FIRST / j) if branching else (lambda j: _OPTIMISM**j)
    return (0.0, *(sum(map(worth, range(low + 1, high + 1))) / (high - low) for low, high in pairwise(EDGES)))


class Acceptance:
    """Running means: ``mean[i]`` is the probability that a node of bucket i is on the accepted path, ``weight[i]`` the
    number of drafts behind it, at most ``window``."""

    __slots__ = ("mean", "weight", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.mean = [0.0] * len(EDGES)
        self.weight = [0.0] * len(EDGES)

    def add(self, hits: Sequence[int], seen: int) -> None:
        """One draft: ``hits`` are the accepted node indices, ascending (the root is none of them); what became of
        nodes up to ``seen`` is known."""
        place, low = 0, 0
        for i in range(1, len(EDGES)):
            if low >= seen:
                return
            high = EDGES[i]
            last = min(high, seen)
            count = 0
            while place < len(hits) and hits[place] <= last:
                place += 1
                count += 1
            part = (last - low) / (high - low)
            weight = self.weight[i] = min(self.weight[i] + part, self.window)
            self.mean[i] += (count / (last - low) - self.mean[i]) * part / weight
            low = high

    def age(self, weight: float) -> None:
        """What is known counts as ``weight`` drafts at most."""
        self.weight = [min(w, weight) for w in self.weight]


class Book:
    """What is known of every drafter: engine-wide, per class of length, and per request.

    Each estimate leans on the more general one as far as its own evidence is thin (partial pooling), and the most
    general one on an optimistic start.
    """

    def __init__(self) -> None:
        self._sources = defaultdict[int, Acceptance](lambda: Acceptance(_WINDOW["source"]))
        self._classes = defaultdict[Key, Acceptance](lambda: Acceptance(_WINDOW["class"]))
        self._rows: dict[int, defaultdict[Key, Acceptance]] = {}
        self._curves: dict[tuple[Key, int, bool], list[float]] = {}  # of classes, until something is added

    def add(self, key: Key, row: int, hits: Sequence[int], seen: int) -> None:
        """A draft of request ``row``; see ``Acceptance.add``."""
        if row not in self._rows:
            self._rows[row] = defaultdict(lambda: Acceptance(_WINDOW["row"]))
        for level in (self._sources[key[0]], self._classes[key], self._rows[row][key]):
            level.add(hits, seen)
        self._curves.clear()

    def gains(self, key: Key, row: int | None, nodes: int, branching: bool = False) -> list[float]:
        """Accepted nodes expected of a draft of ``nodes`` nodes cut at each length of ``ladder(nodes)``."""
        lengths = ladder(nodes)
        rates = self._rates(key, len(lengths), branching)
        own = None if row is None or row not in self._rows else self._rows[row].get(key)
        trust = _TRUST["row"]
        gains, total, low = [0.0], 0.0, 0
        for i in range(1, len(lengths)):
            rate = rates[i]
            if own is not None:
                rate = (own.weight[i] * own.mean[i] + trust * rate) / (own.weight[i] + trust)
            total += rate * (lengths[i] - low)
            gains.append(total)
            low = lengths[i]
        return gains

    def _rates(self, key: Key, buckets: int, branching: bool) -> list[float]:
        """Acceptance in the first buckets, engine-wide."""
        known = self._curves.get((key, buckets, branching))
        if known is not None:
            return known
        rates, before = [0.0], 1.0
        source, cls, priors = self._sources.get(key[0]), self._classes.get(key), _prior(branching)
        for i in range(1, buckets):
            rate, tried = priors[i], 0.0
            if source is not None:
                tried = source.weight[i]
                rate = (tried * source.mean[i] + _TRUST["source"] * rate) / (tried + _TRUST["source"])
            if cls is not None:
                rate = (cls.weight[i] * cls.mean[i] + _TRUST["class"] * rate) / (cls.weight[i] + _TRUST["class"])
            if tried < 1 and i > 1:  # never tried: as much less than the one before as was assumed
                rate = min(rate, before * priors[i] / priors[i - 1])
            rates.append(rate)
            before = rate
        self._curves[key, buckets, branching] = rates
        return rates

    def age(self, source: int, rows: Collection[int], weight: float = 1.0) -> None:
        """What these requests showed of drafter ``source`` before a pause counts as ``weight`` drafts from now on."""
        for row in rows:
            for key, found in self._rows.get(row, {}).items():
                if key[0] == source:
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

    key: Key
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
