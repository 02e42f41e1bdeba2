"""Rejection sampling along a chain: accept with probability min(1, p/q), otherwise draw from (p - q)+."""

from __future__ import annotations

from dataclasses import replace

import torch

from outrider.errors import IncompatibleParts
from outrider.rng import Draws, Purpose
from outrider.types import DraftTree, Drawn, Guarantee, Needs, Verdict
from outrider.verify.base import TargetView, Verifier
from outrider.verify.match import Match
from outrider.verify.walk import (
    chain_path,
    draw_bonus,
    late,
    probability,
    proposal,
    reject,
    testable,
)


class ChainRejection(Verifier):
    """Speculative decoding's rule (Leviathan, Kalman and Matias 2211.17192, algorithm 1; Chen et al.
    2302.01318, algorithm 2, which swaps the letters). Node i with token x stands if u q(x) < p(x), u being
    its coin; behind the first that does not, the bonus comes from norm((p - q)+), and behind an accepted
    chain from p.

    A node chosen without drawing has q = one-hot: it stands with probability p(x), and the residual is p
    without x. A node with no sibling is one draw from its law whatever its kind is called, so all kinds are
    welcome.
    """

    guarantee = Guarantee.EXACT
    kinds = frozenset(Drawn)
    branching = False
    needs = Needs(draft_law=True)

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        """See ``Verifier``. Coin of node n: ``uniform(ACCEPT, n)``; bonus behind n: ``uniform(RESIDUAL,
        n)``."""
        if not tree.is_chain:
            raise IncompatibleParts(
                "the chain rejection rule was given a tree that branches",
                why="it is exact for one child per node only",
                hint="Use the recursive rule, or match.",
            )
        b, n = tree.shape
        if target.p.all_greedy:
            return greedy(tree, target, draws)
        if n == 1:
            return _plain(tree, target, draws)
        probs, drafted = target.p.probs, proposal(tree)
        rows = torch.arange(b, device=tree.tokens.device)
        # Columns 0 .. N-2 below are nodes 1 .. N-1; the law that judges node n stands at node n-1.
        x, q_x, open_ = tree.tokens[:, 1:], drafted.q[:, 1:], testable(tree)[:, 1:]
        p_x = probs[:, :-1].gather(2, x[:, :, None]).squeeze(2)
        coins = draws.uniform(Purpose.ACCEPT, torch.arange(1, n, device=x.device).expand(b, n - 1))
        # Strictly less: p(x) = 0 must never pass with u = 0, and u < 1 lets p = q always pass.
        ok = open_ & (coins * q_x < p_x)
        behind = late(tree)
        stand = (ok if behind is None else ok & ~behind[:, 1:]).cumprod(1, dtype=torch.int64)
        end = stand.sum(1)

        column = end.clamp(max=n - 2)  # of the child of the last accepted node
        here = end < n - 1
        taken = here & ok[rows, column]  # accepted, but late: it becomes the bonus
        rejected = here & open_[rows, column] & ~ok[rows, column]
        p_end, token = probs[rows, end], x[rows, column]
        q_row = None if tree.laws is None else tree.laws[rows, drafted.index[rows, column + 1]]
        scale = (rejected & ~drafted.point[rows, column + 1]).to(p_end.dtype)
        law = reject(p_end, token, rejected, q_row, scale)
        bonus, empty = draw_bonus(law, law.sum(1), p_end, end, draws)

        tested = open_.clone()
        tested[:, 1:] &= stand[:, :-1].bool()
        chance = torch.where(tested, probability(p_x, q_x), torch.nan)
        return Verdict(
            path=chain_path(tree, end + 1),
            count=end + 1,
            bonus=torch.where(taken, token, bonus),
            reasons=torch.nn.functional.pad(chance, (1, 0), value=torch.nan),
            fallbacks=empty & ~taken,
        )


def greedy(tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
    """Temperature 0: p is one-hot, so every coin accepts the target's choice and refuses anything else, and
    every residual is that choice. ``Match`` finds the same without a vector over the vocabulary."""
    found = Match().verify(tree, target, draws)
    none = torch.zeros_like(found.count, dtype=torch.bool)
    return replace(found, fallbacks=none)


def _plain(tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
    """No draft: the bonus comes from p at the root, with the draw it would have behind any chain."""
    zero = torch.zeros_like(tree.tokens)
    bonus = target.p.choose(draws.uniform(Purpose.RESIDUAL, zero)).squeeze(1)
    return Verdict(zero, torch.ones_like(bonus), bonus, fallbacks=torch.zeros_like(bonus, dtype=torch.bool))
