"""What acceptance rules share: which nodes can be accepted, the path to a node, proposal laws, residuals.

Everything here is a tensor operation over rows and nodes; nothing asks the device for a value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from outrider.rng import Draws, Purpose, inverse_cdf
from outrider.types import DraftTree, Drawn, Role


@dataclass(frozen=True)
class Proposal:
    """How likely each node's own token was to be proposed, given the siblings drawn before it.

    ``point`` b[B,N] marks nodes whose proposal is a point mass; ``q`` f[B,N] is the law's value at the token
    (1 for points); ``index`` i64[B,N] is the row of ``tree.laws`` (0 for points, where it is not read)."""

    point: Tensor
    q: Tensor
    index: Tensor


def testable(tree: DraftTree) -> Tensor:
    """b[B,N]: drafted nodes that may be accepted: real, not the root, and not probes."""
    drafted = tree.parents >= 0
    return drafted if tree.role is None else drafted & (tree.role != int(Role.PROBE))


def late(tree: DraftTree) -> Tensor | None:
    """b[B,N]: nodes the target has not been run on, None where there are none.

    An accepted late leaf can only be the *bonus* of its parent: its keys and values are not stored and the
    target's law behind it is not known. With that, every round adds exactly one token that is not on the
    path.
    """
    return None if tree.role is None else tree.role == int(Role.LATE)


def chain_path(tree: DraftTree, count: Tensor) -> Tensor:
    """i64[B,A]: the path of the first ``count`` i64[B] nodes of a chain (root included), -1 behind."""
    width = min(tree.shape[1], tree.depth_bound + 1)
    index = torch.arange(width, device=count.device)
    return torch.where(index < count[:, None], index, -1)


def path_to(tree: DraftTree, end: Tensor) -> tuple[Tensor, Tensor]:
    """``(path i64[B,A], count i64[B])`` from the root down to node ``end`` i64[B] of each row."""
    climb = [end]
    for _ in range(tree.depth_bound):
        above = tree.parents.gather(1, climb[-1].clamp(min=0)[:, None]).squeeze(1)
        climb.append(torch.where(climb[-1] > 0, above, -1))
    upward = torch.stack(climb, 1)  # the end first, -1 above the root
    count = (upward >= 0).sum(1)
    back = count[:, None] - 1 - torch.arange(upward.shape[1], device=end.device)
    return torch.where(back >= 0, upward.gather(1, back.clamp(min=0)), -1), count


def proposal(tree: DraftTree) -> Proposal:
    """Read every node's own proposal law.

    A node without a law, or whose law gives its token no mass at all (a drafter's slip, or a law used up by
    drawing without replacement), counts as a point: conditional on the draft that is exact for any token.
    """
    ones = torch.ones(tree.shape, device=tree.tokens.device)
    if tree.laws is None or tree.law is None:
        return Proposal(ones.bool(), ones, torch.zeros_like(tree.tokens))
    index = tree.law.clamp(min=0)
    rows = torch.arange(tree.shape[0], device=index.device)[:, None]
    q = tree.laws[rows, index, tree.tokens]
    point = (tree.law < 0) | ~(q > 0)
    if tree.drawn is not None:
        point = point | (tree.drawn == int(Drawn.POINT))
    return Proposal(point, torch.where(point, 1.0, q), torch.where(point, 0, index))


def probability(p: Tensor, q: Tensor) -> Tensor:
    """min(1, p/q), elementwise, with 0/0 = 0."""
    return torch.where(q > 0, p / q, (p > 0).to(p.dtype)).clamp(max=1)


def reject(law: Tensor, token: Tensor, rejected: Tensor, q: Tensor | None, scale: Tensor) -> Tensor:
    """Take a rejected proposal out of a law (Leviathan et al. 2023, equation in section 2.3, unnormalised).

    ``law`` f[B,V] becomes ``(law - scale q)+`` with ``q`` f[B,V] and ``scale`` f[B] (0 leaves a row as it
    is), then loses ``token`` i64[B] in rows ``rejected`` b[B]: all of it for a point, nothing but rounding
    otherwise. Returns a new tensor; the caller's rows of p are never changed.
    """
    if q is None:
        left = law.clone()
    else:
        left = torch.addcmul(law, q.to(law.dtype), -scale.to(law.dtype)[:, None]).clamp_(min=0)
    at = token[:, None]
    return left.scatter_(1, at, left.gather(1, at).masked_fill_(rejected[:, None], 0))


def draw_bonus(law: Tensor, mass: Tensor, p: Tensor, end: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Draw the token behind node ``end`` i64[B] from ``law`` f[B,V] (not normalised) with sum ``mass`` f[B].

    Returns ``(bonus i64[B], fallback b[B])``: rows without any mass draw from ``p`` f[B,V] and say so.
    """
    empty = ~(mass > 0)  # NaN counts as empty
    law = torch.where(empty[:, None], p, law)
    return inverse_cdf(law, draws.uniform(Purpose.RESIDUAL, end)), empty
