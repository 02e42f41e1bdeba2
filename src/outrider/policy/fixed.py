"""Constant budgets, and the budget of a combination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider.errors import check_number
from outrider.policy.base import Policy
from outrider.types import Budget, DraftTree, Outcome

if TYPE_CHECKING:
    from outrider.draft.base import DraftContext
    from outrider.run.row import Row


@dataclass(frozen=True)
class Fixed(Policy):
    """Always the same budget: at most ``depth`` levels, ``nodes`` drafted nodes and ``width`` siblings."""

    depth: int
    nodes: int | None = None
    width: int = 1

    def __post_init__(self) -> None:
        check_number("depth", self.depth, 0)
        check_number("nodes", 0 if self.nodes is None else self.nodes, 0)
        check_number("width", self.width, 1)

    def plan(self, rows: Sequence[Row]) -> Budget:
        return Budget(self.depth, self.depth * self.width if self.nodes is None else self.nodes, self.width)


class Wider(Policy):
    """The budget of several drafters together. Each keeps its own plan as its share; the whole is the largest of
    them, or with ``total`` (one tree from all of them) their sum."""

    def __init__(self, policies: Sequence[Policy], total: bool = False) -> None:
        self.policies, self.total = list(policies), total

    def plan(self, rows: Sequence[Row]) -> Budget:
        shares = tuple(policy.plan(rows) for policy in self.policies)
        join = sum if self.total else max
        return Budget(
            depth=max(share.depth for share in shares),
            nodes=join(share.nodes for share in shares),
            width=join(share.width for share in shares),
            shares=shares,
        )

    def bind(self, context: DraftContext) -> None:
        for policy in self.policies:
            policy.bind(context)

    def review(self, rows: Sequence[Row], tree: DraftTree) -> list[int] | None:
        found = [policy.review(rows, tree) for policy in self.policies]
        kept = [counts for counts in found if counts is not None]
        return [min(counts) for counts in zip(*kept, strict=True)] if kept else None

    def observe(self, outcome: Outcome) -> None:
        for policy in self.policies:
            policy.observe(outcome)
