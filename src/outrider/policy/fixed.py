"""Constant budgets, and the budget of a combination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outrider.policy.base import LevelView, Policy
from outrider.types import Budget, Outcome

if TYPE_CHECKING:
    from outrider.run.row import Row


@dataclass(frozen=True)
class Fixed(Policy):
    """Always the same budget: at most ``depth`` levels, ``nodes`` drafted nodes and ``width`` siblings."""

    depth: int
    nodes: int | None = None
    width: int = 1

    def plan(self, rows: Sequence[Row]) -> Budget:
        return Budget(self.depth, self.depth * self.width if self.nodes is None else self.nodes, self.width)


class Wider(Policy):
    """The budget of several drafters together: the largest of theirs, or with ``total`` their sum of nodes.

    Each drafter still keeps to what it was built for; the budget is only an upper bound.
    """

    def __init__(self, policies: Sequence[Policy], total: bool = False) -> None:
        self.policies, self.total = list(policies), total

    def plan(self, rows: Sequence[Row]) -> Budget:
        plans = [policy.plan(rows) for policy in self.policies]
        nodes = [plan.nodes for plan in plans]
        stops = [plan.more for plan in plans if plan.more is not None]

        def more(level: LevelView) -> Tensor:
            return torch.stack([stop(level) for stop in stops]).all(0)

        return Budget(
            depth=max(plan.depth for plan in plans),
            nodes=sum(nodes) if self.total else max(nodes),
            width=max(plan.width for plan in plans),
            more=more if stops else None,
        )

    def observe(self, outcome: Outcome) -> None:
        for policy in self.policies:
            policy.observe(outcome)
