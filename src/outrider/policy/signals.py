"""Stopping a draft by what the drafter itself says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from outrider.errors import check_number
from outrider.policy.base import LevelView, Policy
from outrider.policy.fixed import Fixed
from outrider.types import Budget

if TYPE_CHECKING:
    from outrider.run.row import Row


@dataclass(frozen=True)
class Confidence(Policy):
    """Stop after the first drafted token whose draft probability is below ``threshold``.

    The rule of transformers' assisted generation (``assistant_confidence_threshold``). The token that fell below
    is kept: it has been drawn. Raw draft probabilities are read (temperature 1), so that the rule also works at
    temperature 0, where every law is a point mass.
    """

    depth: int
    threshold: float = 0.4
    nodes: int | None = None
    width: int = 1

    def __post_init__(self) -> None:
        Fixed(self.depth, self.nodes, self.width)  # the same bounds
        check_number("threshold", self.threshold, 0, 1)

    def plan(self, rows: Sequence[Row]) -> Budget:
        nodes = self.depth * self.width if self.nodes is None else self.nodes
        return Budget(self.depth, nodes, self.width, more=self._more)

    def _more(self, level: LevelView) -> Tensor:
        return level.confidence().amax(dim=1) >= self.threshold
