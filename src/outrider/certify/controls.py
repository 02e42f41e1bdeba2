"""Faults made on purpose: a check that does not find them proves nothing."""

from __future__ import annotations

import torch

from outrider.certify.score import Along
from outrider.parts import Parts
from outrider.rng import Draws
from outrider.types import DraftTree, Drawn, Guarantee, Verdict
from outrider.verify.base import TargetView, Verifier
from outrider.verify.walk import late, path_to, testable


class AcceptAll(Verifier):
    """Takes the longest drafted path whatever the target says of it: drafting without checking."""

    guarantee = Guarantee.RELAXED
    bound = "none"
    kinds = frozenset(Drawn)
    branching = True

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        """See ``Verifier``."""
        n = tree.shape[1]
        order = torch.arange(n, device=tree.tokens.device)
        behind = late(tree)  # late leaves have no logits to go on from
        real = testable(tree) if behind is None else testable(tree) & ~behind
        real[:, 0] = True
        end = torch.where(real, tree.depth * n + (n - 1 - order), -1).argmax(1)
        path, count = path_to(tree, end)
        choices = target.p.choose(None if target.p.all_greedy else draws.text(tree.depth))
        return Verdict(path, count, choices.gather(1, end[:, None]).squeeze(1))


def unchecked(parts: Parts) -> Parts:
    """The broken twin of fresh ``parts``: everything that was drafted is accepted."""
    return parts.with_(verifier=AcceptAll(), name=f"{parts.name}, unchecked")


def plant(text: list[int], along: Along) -> tuple[int, list[int]] | None:
    """``text`` with one token replaced by the target's second choice, where the target was surest of its first;
    the position, and the new text. None for a text that leaves no choice."""
    sure = [at for at, gap in enumerate(along.gap) if text[at] == along.best[at] and gap < float("inf")]
    if not sure:
        return None
    at = max(sure, key=lambda i: along.gap[i])
    return at, [*text[:at], along.second[at], *text[at + 1 :]]
