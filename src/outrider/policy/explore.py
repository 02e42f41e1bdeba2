"""When to try again what did not pay, and how much of that the time affords."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Tries:
    """A schedule in steps whose gaps grow from ``first``, doubling, to ``most``."""

    first: int = 16
    most: int = 512
    at: int = 0
    """The step from which on the next try is due."""

    def __post_init__(self) -> None:
        self.gap = self.first

    def due(self, step: int) -> bool:
        return step >= self.at

    def later(self, step: int) -> None:
        """Nothing came of it: the next try is further away than the last."""
        self.at = step + self.gap
        self.gap = min(2 * self.gap, self.most)

    def soon(self, step: int) -> None:
        """Something may come of it: the next step may try, and gaps are short again."""
        self.at, self.gap = step + 1, self.first

    def restart(self, step: int) -> None:
        """Conditions have changed: short gaps, and the next try no further away than one of them."""
        self.at, self.gap = min(self.at, step + self.first), self.first


@dataclass
class Purse:
    """Time that may be spent on trying: a ``share`` of all time, and ``grace`` seconds before that has grown to
    anything."""

    share: float
    time: float = 0.0
    spent: float = 0.0

    def affords(self, loss: float, grace: float = 0.0) -> bool:
        """Whether a try that is expected to lose ``loss`` seconds keeps within the share."""
        return self.spent + loss <= self.share * self.time + grace
