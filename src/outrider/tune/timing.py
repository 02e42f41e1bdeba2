"""Time: a budget in seconds, and drafters whose work is timed apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from outrider.draft.base import DraftContext, Drafter

if TYPE_CHECKING:
    from outrider.rng import Draws
    from outrider.run.row import Row
    from outrider.types import Budget, DraftTree, Outcome

Clock = Callable[[], float]


class Deadline:
    """``seconds`` from now on. A part of it is a deadline of its own, which never ends later than the whole."""

    def __init__(self, seconds: float, clock: Clock = time.perf_counter) -> None:
        self.clock = clock
        self.began = clock()
        self.ends = self.began + seconds

    @property
    def left(self) -> float:
        """Seconds until it ends, 0 behind it."""
        return max(0.0, self.ends - self.clock())

    @property
    def used(self) -> float:
        """Seconds since it began."""
        return self.clock() - self.began

    def part(self, fraction: float) -> Deadline:
        """``fraction`` of what is left."""
        return Deadline(self.left * fraction, self.clock)


class Timed(Drafter):
    """``inner`` with the seconds of its proposing and observing added up, until somebody takes them."""

    def __init__(self, inner: Drafter, clock: Clock = time.perf_counter) -> None:
        self.inner, self.clock, self.seconds = inner, clock, 0.0
        self.name, self.needs = inner.name, inner.needs
        self.kinds, self.branching = inner.kinds, inner.branching

    @property
    def sources(self) -> tuple[tuple[str, ...], ...]:
        return self.inner.sources

    def take(self) -> float:
        """Seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def bind(self, context: DraftContext) -> None:
        self.inner.bind(context)

    def admit(self, row: Row) -> None:
        self.inner.admit(row)

    def propose(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        began = self.clock()
        tree = self.inner.propose(rows, budget, draws)
        self.seconds += self.clock() - began
        return tree

    def observe(self, outcome: Outcome) -> None:
        began = self.clock()
        self.inner.observe(outcome)
        self.seconds += self.clock() - began

    def drop(self, row: Row) -> None:
        self.inner.drop(row)

    def fork(self, row: Row, clone: Row) -> None:
        self.inner.fork(row, clone)
