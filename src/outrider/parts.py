"""``Parts``: the named choice of parts that a preset is, and the check that they fit together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from outrider.errors import IncompatibleParts
from outrider.types import Drawn, Guarantee, Needs

if TYPE_CHECKING:
    from torch import Tensor

    from outrider.draft.base import Drafter
    from outrider.model.base import LanguageModel
    from outrider.policy.base import Policy
    from outrider.types import DraftTree
    from outrider.verify.base import Verifier

Law = Callable[["Tensor", "DraftTree"], "Tensor"]
"""Changes the target's law before ``warp``: (logits f[B,N,V], tree) -> logits f[B,N,V]. Every guarantee is
relative to the law it returns, and it runs on the plain path as well."""


@dataclass(frozen=True)
class Parts:
    """Everything a way of decoding consists of. ``drafter`` None is plain decoding.

    Drafters and policies have state: one ``Parts`` serves one engine.
    """

    verifier: Verifier
    policy: Policy
    drafter: Drafter | None = None
    law: Law | None = None
    name: str = "custom"

    def __post_init__(self) -> None:
        drafter, verifier = self.drafter, self.verifier
        if drafter is None:
            return
        rule = type(verifier).__name__
        if drafter.branching and not verifier.branching:
            raise IncompatibleParts(
                f"{drafter.name} drafts trees that branch, but {rule} checks chains",
                hint="Use verifier Match or Recursive, or a chain structure for the drafter.",
            )
        wrong = drafter.kinds - verifier.kinds
        if wrong:
            kinds = ", ".join(sorted(Drawn(kind).name.lower() for kind in wrong))
            raise IncompatibleParts(
                f"{drafter.name} proposes tokens drawn as {kinds}, for which {rule} is not exact",
                hint="Use verifier Match, which is exact for any drafter.",
            )

    @property
    def guarantee(self) -> Guarantee:
        """What the verifier promises; never stated by hand."""
        return self.verifier.guarantee

    @property
    def prunable(self) -> bool:
        """Whether nodes of a finished draft may be left out whatever they hold: a drawn token that is discarded
        because of its value would bias the law, unless the verifier never reads how nodes were drawn."""
        if self.drafter is None or self.guarantee is Guarantee.IDENTICAL:
            return True
        return self.drafter.kinds <= {Drawn.POINT}

    @property
    def needs(self) -> Needs:
        needs = self.verifier.needs
        return needs | self.drafter.needs if self.drafter is not None else needs

    def check(self, target: LanguageModel) -> None:
        """Raise ``IncompatibleParts`` when ``target`` cannot serve these parts."""
        if self.drafter is not None and self.drafter.branching and not target.branching:
            raise IncompatibleParts(
                f"{self.name} drafts trees that branch, but {target.name} has recurrent layers, which cannot",
                why="A running state belongs to one path",
                hint="Use a preset that drafts chains, for example 'pld' or 'sam'.",
            )

    def __or__(self, other: Parts) -> Parts:
        """Priority: where the left side proposes nothing, the right side does."""
        from outrider.draft.mix import Priority

        return self._combine(other, Priority, "|")

    def __add__(self, other: Parts) -> Parts:
        """Merge: one tree from both sides' proposals."""
        from outrider.draft.mix import Merge

        return self._combine(other, Merge, "+")

    def _combine(self, other: Parts, mix: Callable[[list[Drafter]], Drafter], sign: str) -> Parts:
        from outrider.policy.fixed import Wider

        if self.drafter is None or other.drafter is None:
            raise IncompatibleParts(
                f"'{self.name}' and '{other.name}' cannot be combined",
                why="'plain' proposes nothing",
                hint="Leave 'plain' out: every preset falls back to plain decoding by itself.",
            )
        if self.law is not other.law:
            raise IncompatibleParts(
                f"'{self.name}' and '{other.name}' decode different laws", hint="Choose one of them."
            )
        drafter = mix([self.drafter, other.drafter])
        policy: Policy = Wider([self.policy.core(), other.policy.core()], total=sign == "+")
        for side in (self.policy, other.policy):
            if side.core() is not side:  # one that adapts adapts the whole
                policy = side.over(policy)
                break
        return Parts(
            verifier=_common_verifier(self.verifier, other.verifier, drafter),
            policy=policy,
            drafter=drafter,
            law=self.law,
            name=f"{self.name}{sign}{other.name}",
        )

    def with_(self, **parts: object) -> Parts:
        """The same with some parts replaced (``drafter``, ``verifier``, ``policy``, ``law``, ``name``)."""
        return replace(self, **parts)  # type: ignore[arg-type]


def _common_verifier(left: Verifier, right: Verifier, drafter: Drafter) -> Verifier:
    """The first of the two that is exact for what ``drafter`` proposes, else ``Match``, which always is."""
    from outrider.verify.match import Match

    if type(left) is type(right):
        candidates = [left]
    else:  # prefer a rule that uses the draft law: it accepts more of what was drawn
        candidates = sorted([left, right], key=lambda v: not v.needs.draft_law)
    for verifier in candidates:
        if verifier.guarantee is Guarantee.RELAXED:
            continue
        if drafter.kinds <= verifier.kinds and (verifier.branching or not drafter.branching):
            return verifier
    return Match()
