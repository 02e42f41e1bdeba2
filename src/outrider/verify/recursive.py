"""Recursive rejection sampling over siblings: each one rejected is subtracted before the next is tried."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from outrider.rng import Draws, Purpose
from outrider.types import DraftTree, Drawn, Guarantee, Needs, Verdict
from outrider.verify.base import TargetView, Verifier
from outrider.verify.rejection import ChainRejection, greedy
from outrider.verify.walk import (
    Proposal,
    draw_bonus,
    late,
    probability,
    proposal,
    reject,
    testable,
)


class Recursive(Verifier):
    """Multi-candidate speculative decoding (Yang et al. 2401.06706, algorithm 2) and recursive rejection
    sampling (Jeon et al. 2402.14160, algorithm 1; SpecInfer 2305.09781, algorithm 2).

    At a node start with r = p and try its children in *sibling order*: child x with conditional law c stands
    if u c(x) < r(x); otherwise r becomes norm((r - c)+). When none stands, the bonus comes from r.

    c is the true conditional law of x given the siblings drawn before it: a point mass for ``POINT``, q
    itself for ``IID``, q without the earlier siblings *of the same law* for ``WITHOUT_REPLACEMENT``. Draws
    from different laws are independent, so a merged sibling set only needs each sibling's own bookkeeping.
    """

    guarantee = Guarantee.EXACT
    kinds = frozenset({Drawn.POINT, Drawn.IID, Drawn.WITHOUT_REPLACEMENT})
    branching = True
    needs = Needs(draft_law=True)

    def __init__(self) -> None:
        self._chain = ChainRejection()

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        """See ``Verifier``. Coins as in ``ChainRejection``, whose decisions this makes where no node
        branches."""
        if tree.is_chain:
            return self._chain.verify(tree, target, draws)
        if target.p.all_greedy:
            return greedy(tree, target, draws)
        walk = _Walk(tree, target.p.probs, draws)
        for _ in range(tree.depth_bound):
            if walk.over:
                break
            walk.descend()
        return walk.verdict()


@dataclass(frozen=True)
class _Siblings:
    """``own`` b[B,N]: nodes that have earlier siblings of their own law; ``drawn`` f64[B,N]: their mass in
    it."""

    own: Tensor
    drawn: Tensor


def _without_replacement(tree: DraftTree, drafted: Proposal) -> tuple[Proposal, _Siblings | None]:
    """What each node's law lost to earlier siblings. A token that its law had already given away cannot have
    been drawn from the rest: such a node counts as a point (it is then rejected, without a division by
    zero)."""
    if tree.laws is None or tree.drawn is None:
        return drafted, None
    tokens, index = tree.tokens, drafted.index
    member = testable(tree) & (tree.drawn == int(Drawn.WITHOUT_REPLACEMENT)) & ~drafted.point
    together = (tree.parents[:, :, None] == tree.parents[:, None, :]) & (index[:, :, None] == index[:, None, :])
    earlier = (together & member[:, :, None] & member[:, None, :]).tril(-1)  # b[B,N,N]: j before i
    repeated = (earlier & (tokens[:, :, None] == tokens[:, None, :])).any(2)
    earlier = earlier & ~repeated[:, None, :]
    rows = torch.arange(tree.shape[0], device=tokens.device)[:, None, None]
    q = tree.laws[rows, index[:, :, None], tokens[:, None, :]]  # of token j in the law of node i
    drawn = torch.where(earlier, q, 0).sum(2, dtype=torch.float64)
    point = drafted.point | repeated
    drafted = Proposal(point, torch.where(point, 1.0, drafted.q), index)
    return drafted, _Siblings(earlier.any(2), drawn)


class _Walk:
    """The walk of all rows at once. ``law`` f[B,V] is r times its sum ``mass`` f64[B]: normalising would cost
    a pass over V, multiplying both sides of a comparison costs nothing."""

    def __init__(self, tree: DraftTree, probs: Tensor, draws: Draws) -> None:
        b, n = tree.shape
        device = tree.tokens.device
        self.tree, self.probs, self.draws = tree, probs, draws
        self.rows = torch.arange(b, device=device)
        self.drafted, self.siblings = _without_replacement(tree, proposal(tree))
        self.coins = draws.uniform(Purpose.ACCEPT, torch.arange(n, device=device).expand(b, n))
        self.open, self.late = testable(tree), late(tree)
        self.node = torch.zeros(b, dtype=torch.int64, device=device)
        self.alive = torch.ones(b, dtype=torch.bool, device=device)
        self.law = probs[:, 0]
        self.mass = torch.ones(b, dtype=torch.float64, device=device)
        self.bonus = torch.full_like(self.node, -1)  # an accepted late leaf
        self.why = torch.full((b, n), torch.nan, dtype=probs.dtype, device=device)
        self.path = [self.node]

    @property
    def over(self) -> bool:
        return _nowhere(self.alive)

    def descend(self) -> None:
        """One level: try the children of every row's node, and step into the one that stands."""
        kids = self.tree.children[self.rows, self.node]
        hit = torch.full_like(self.node, -1)
        for place in range(kids.shape[1]):
            kid = kids[:, place]
            waiting = self.alive & (hit < 0) & (kid >= 0)
            kid = kid.clamp(min=0)
            waiting = waiting & self.open[self.rows, kid]
            if not _nowhere(waiting):
                hit = torch.where(self._try(kid, waiting, first=place == 0), kid, hit)
        moved = hit >= 0
        if self.late is not None:
            leaf = moved & self.late[self.rows, hit.clamp(min=0)]
            self.bonus = torch.where(leaf, self.tree.tokens[self.rows, hit.clamp(min=0)], self.bonus)
            moved = moved & ~leaf
        self.path.append(torch.where(moved, hit, -1))
        self.node = torch.where(moved, hit, self.node)
        if not _nowhere(moved):
            self.law = torch.where(moved[:, None], self.probs[self.rows, self.node], self.law)
            self.mass = torch.where(moved, 1.0, self.mass)
        self.alive = moved

    def _try(self, kid: Tensor, waiting: Tensor, first: bool) -> Tensor:
        """b[B]: in which of the rows ``waiting`` child ``kid`` i64[B] stands; the others lose it from their
        law."""
        rows, tree = self.rows, self.tree
        token, point, q_x = tree.tokens[rows, kid], self.drafted.point[rows, kid], self.drafted.q[rows, kid]
        q_row = None if tree.laws is None else tree.laws[rows, self.drafted.index[rows, kid]]
        rest: Tensor | float = 1.0  # mass of q that the earlier siblings left
        if not first and q_row is not None and self.siblings is not None:
            left = q_row.sum(1, dtype=torch.float64) - self.siblings.drawn[rows, kid]
            own = self.siblings.own[rows, kid] & ~point
            rest = torch.where(own, torch.maximum(left, q_x.double()), 1.0)  # x itself is left
        law_x = self.law.gather(1, token[:, None]).squeeze(1)
        stands = waiting & (self.coins[rows, kid] * q_x * self.mass < law_x * rest)
        chance = probability(law_x * rest, q_x * self.mass).to(self.why.dtype)
        self.why[rows, kid] = torch.where(waiting, chance, self.why[rows, kid])

        rejected = waiting & ~stands
        if not _nowhere(rejected):
            scale = torch.where(rejected & ~point, self.mass / rest, 0.0)
            # c = q/rest off the earlier siblings; there the law is zero already, so q need not be masked.
            self.law = reject(self.law, token, rejected, q_row, scale)
            self.mass = torch.where(rejected, self.law.sum(1, dtype=torch.float64), self.mass)
        return stands

    def verdict(self) -> Verdict:
        p_end = self.probs[self.rows, self.node]
        bonus, empty = draw_bonus(self.law, self.mass, p_end, self.node, self.draws)
        path = torch.stack(self.path, 1)
        if path.shape[1] <= self.tree.depth_bound:  # stopped early
            path = torch.nn.functional.pad(path, (0, self.tree.depth_bound + 1 - path.shape[1]), value=-1)
        taken = self.bonus >= 0
        return Verdict(
            path=path,
            count=(path >= 0).sum(1),
            bonus=torch.where(taken, self.bonus, bonus),
            reasons=self.why,
            fallbacks=empty & ~taken,
        )


def _nowhere(mask: Tensor) -> bool:
    """No row is left, as far as the host can know without waiting for a device."""
    return mask.device.type == "cpu" and not bool(mask.any())
