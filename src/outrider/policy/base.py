"""The contract of a draft-length policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from outrider.types import Budget, DraftTree, Outcome

if TYPE_CHECKING:
    from outrider.draft.base import DraftContext
    from outrider.run.row import Row


@dataclass(frozen=True)
class LevelView:
    """One level just drafted: ``tokens`` i64[B,W] and the drafter's raw scores f[B,W,V] they were proposed from."""

    level: int
    tokens: Tensor
    logits: Tensor
    hidden: Tensor | None = None

    def confidence(self) -> Tensor:
        """f[B,W]: the drafter's probability of each token, at temperature 1."""
        chosen = self.logits.gather(2, self.tokens[:, :, None]).squeeze(2)
        return (chosen.float() - self.logits.float().logsumexp(2)).exp()


class Policy(ABC):
    """Plans a budget before drafting; one that wants to end drafts early hands a callable along (``Budget.more``).

    A token that has been drawn is kept and drafting stops *after* it: discarding a drawn token because of its
    value would bias the law.
    """

    def bind(self, context: DraftContext) -> None:
        """Called once, before the first request, with the target it plans for."""

    @abstractmethod
    def plan(self, rows: Sequence[Row]) -> Budget:
        """Upper bound for the coming proposal."""

    def review(self, rows: Sequence[Row], tree: DraftTree) -> list[int] | None:
        """How many of its nodes each row's finished draft keeps, counted from the root (1: none of the draft); None
        keeps everything. Asked only where leaving nodes out by what was drafted cannot bias the law
        (``Parts.prunable``)."""
        return None

    def observe(self, outcome: Outcome) -> None:
        """What became of a tree."""

    def core(self) -> Policy:
        """The policy within whose bounds this one keeps: itself, unless it adapts another to what happens."""
        return self

    def over(self, core: Policy) -> Policy:
        """A policy that does with ``core`` what this one does with its own; ``core`` itself where it does nothing.
        Parts that are combined are adapted together."""
        return core
