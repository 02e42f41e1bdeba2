"""Verifiers with one deliberate mistake each. A law test that does not reject them proves nothing."""

from __future__ import annotations

from dataclasses import replace

import torch

from outrider.rng import Draws, Purpose, absorb, inverse_cdf
from outrider.types import DraftTree, Drawn, Verdict
from outrider.verify.base import TargetView, Verifier
from outrider.verify.match import Match


class Twin(Verifier):
    """Runs ``rule`` on a changed tree, or changes its verdict."""

    def __init__(self, rule: Verifier) -> None:
        self.rule = rule
        self.guarantee, self.kinds, self.branching = rule.guarantee, rule.kinds, rule.branching

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        return self.rule.verify(self.change(tree), target, draws)

    def change(self, tree: DraftTree) -> DraftTree:
        return tree


class BonusFromP(Twin):
    """The residual is replaced by p."""

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        verdict = self.rule.verify(tree, target, draws)
        end = verdict.path.gather(1, verdict.count[:, None] - 1).squeeze(1)
        law = target.p.probs[torch.arange(len(end)), end]
        return replace(verdict, bonus=inverse_cdf(law, draws.uniform(Purpose.RESIDUAL, end)))


class ReplacementForgotten(Twin):
    """Siblings drawn without replacement are taken for independent draws."""

    def change(self, tree: DraftTree) -> DraftTree:
        drawn = tree.drawn
        return replace(tree, drawn=torch.where(drawn == int(Drawn.WITHOUT_REPLACEMENT), int(Drawn.IID), drawn))


class TopKAsSampled(Twin):
    """The drafter's best tokens are taken for draws (chains: one, trees: several without replacement)."""

    def change(self, tree: DraftTree) -> DraftTree:
        # Only for schemes with one draft law: row k of ``laws`` then belongs to the k-th inner node.
        law = torch.unique(tree.parents[0, 1:], return_inverse=True)[1].expand(tree.shape[0], -1)
        return replace(
            tree,
            drawn=torch.full_like(tree.tokens, int(Drawn.WITHOUT_REPLACEMENT)),
            law=torch.nn.functional.pad(law, (1, 0), value=-1),
        )


class OneLawForAll(Twin):
    """In a merged sibling set everybody is judged by the first drafter's law."""

    def change(self, tree: DraftTree) -> DraftTree:
        parents, law = tree.parents[0].tolist(), tree.law[0].tolist()
        first: dict[int, int] = {}
        for parent, index in zip(parents, law, strict=True):
            if index >= 0:
                first.setdefault(parent, index)
        merged = [first[parent] if index >= 0 else -1 for parent, index in zip(parents, law, strict=True)]
        return replace(tree, law=torch.tensor(merged).expand(tree.shape))


class BestOfTwo(Verifier):
    """Match that chooses twice at every node and keeps the longer walk."""

    guarantee, kinds, branching = Match.guarantee, Match.kinds, True

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        a = Match().verify(tree, target, draws)
        b = Match().verify(tree, target, Draws(absorb(draws.stream, 1), draws.position))
        better = b.count > a.count
        return Verdict(
            path=torch.where(better[:, None], b.path, a.path),
            count=torch.where(better, b.count, a.count),
            bonus=torch.where(better, b.bonus, a.bonus),
        )
