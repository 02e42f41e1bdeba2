"""The contract of a drafter, and what it is told when it is bound to a target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outrider.rng import Draws
from outrider.types import Budget, DraftTree, Drawn, Needs, Outcome

if TYPE_CHECKING:
    import torch

    from outrider.model.base import LanguageModel
    from outrider.run.row import Row


@dataclass(frozen=True)
class DraftContext:
    """What a drafter may know of the engine it drafts for, handed over once by ``bind``."""

    target: LanguageModel
    vocab_size: int
    device: torch.device
    max_rows: int
    max_context: int = 1 << 20
    tokenizer: Any = None
    stop_tokens: frozenset[int] = frozenset()
    """End-of-text ids of the model: a draft that runs past one is wasted."""
    draft_model: LanguageModel | None = None
    """The second model of ``LLM(draft_model=...)``, for drafters that want one."""
    prefix_entries: int = 0
    """How many finished rows' stores are worth keeping for requests that begin alike."""
    prefill_tokens: int = 2048
    """Cap on rows times tokens of one forward that reads prompts."""
    sources: tuple[tuple[str, ...], ...] = ()
    """``Drafter.sources`` of the engine's drafter: whose nodes a policy will meet."""


class Drafter(ABC):
    """Proposes a tree of candidate tokens for each row.

    ``kinds`` are the ways of drawing its nodes may have, ``branching`` whether its trees ever branch; both are
    read when parts are combined, before anything runs. State per request is keyed by ``row.id`` (never by the
    row's place in the batch, which changes when rows leave).
    """

    name: str = "draft"
    """Origin shown to users for every token this drafter proposed."""
    needs: Needs = Needs()
    kinds: frozenset[Drawn] = frozenset({Drawn.POINT})
    branching: bool = False
    bound: bool = False
    """Whether an engine has it; state belongs to one engine."""

    @property
    def sources(self) -> tuple[tuple[str, ...], ...]:
        """Origins of the nodes of each part that has a budget of its own; a drafter that is no combination is one."""
        return ((self.name,),)

    def bind(self, context: DraftContext) -> None:
        """Called once, before the first request. Raise ``IncompatibleParts`` for a target this cannot serve."""

    def admit(self, row: Row) -> None:
        """A request starts; ``row.tokens`` is its prompt (ids), whose last token is the first root."""

    @abstractmethod
    def propose(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        """A tree per row within ``budget``; its node 0 is ``row.tokens[-1]``. "No draft" is the root alone."""

    def observe(self, outcome: Outcome) -> None:
        """What became of a tree. Called for every outcome, also when another drafter made the tree."""

    def drop(self, row: Row) -> None:
        """The request ended or was cancelled; forget its state."""

    def fork(self, row: Row, clone: Row) -> None:
        """``clone`` starts as a copy of ``row`` (n > 1). By default it is admitted like any other."""
        self.admit(clone)
