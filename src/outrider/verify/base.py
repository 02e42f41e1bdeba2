"""The contract of a verifier, and what it sees of the target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from outrider.rng import Draws
from outrider.sampling import Warped
from outrider.types import DraftTree, Drawn, Guarantee, Needs, Verdict


@dataclass(frozen=True)
class TargetView:
    """The target's answer at every node. ``p`` is its law after ``warp``, each node along its own path;
    ``logits`` f[B,N,V] are the same before ``warp``; ``hidden`` f[B,N,C,D] is there if some part asked."""

    p: Warped
    logits: Tensor | None = None
    hidden: Tensor | None = None


class Verifier(ABC):
    """A pure function of (tree, target, draws). No state, no generator, no look at the clock."""

    guarantee: Guarantee
    kinds: frozenset[Drawn]
    """Ways of drawing this rule is exact for."""
    branching: bool
    """Whether it accepts trees that branch."""
    needs: Needs = Needs()
    bound: str = ""
    """For ``RELAXED``: how far the law may stray, in words, as the rule's source states it."""

    @abstractmethod
    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        """Decide. Works for any number of rows at once and never waits for the device."""
