"""Sample the target, keep what matches: exact for any drafter, and greedy decoding at temperature 0."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from outrider.rng import Draws
from outrider.types import DraftTree, Drawn, Guarantee, Verdict
from outrider.verify.base import TargetView, Verifier
from outrider.verify.walk import chain_path, late, path_to, testable


class Match(Verifier):
    """At every node the target chooses its next token with the draw of that *position*; the walk goes on
    while the choice was drafted ("naive sampling" of SpecInfer, Miao et al. 2305.09781; blockwise parallel
    decoding, Stern et al. 1811.03115, at temperature 0).

    The draws choose the text, so the text does not depend on the draft: it is that of plain decoding, token
    for token. Nodes may be drawn in any way, siblings may repeat a token (the deepest accepted node wins, the
    first of equals), and nothing is read of the drafter's law.
    """

    guarantee = Guarantee.IDENTICAL
    kinds = frozenset(Drawn)
    branching = True

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        """See ``Verifier``. ``why`` is the target's probability of each tested token."""
        if tree.shape[1] == 1:
            return _plain(tree, target, draws)
        if tree.host is not None and tree.role is None and tree.tokens.device.type == "cpu":
            return _hosted(tree, tree.host, target, draws)
        return _chain(tree, target, draws) if tree.is_chain else _tree(tree, target, draws)


def _plain(tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
    """No draft: nothing to compare."""
    zero = torch.zeros_like(tree.tokens)
    bonus = _choose(target, draws, zero).squeeze(1)
    host = [[1, token, 0] for token in bonus.tolist()] if bonus.device.type == "cpu" else None
    return Verdict(path=zero, count=torch.ones_like(bonus), bonus=bonus, host=host)


def _hosted(tree: DraftTree, rows: list[tuple[list[int], list[int]]], target: TargetView, draws: Draws) -> Verdict:
    """The same walk over host lists, where the drafter left them: a loop over some dozens of nodes costs less
    than as many tensor calls."""
    choices = _choose(target, draws, tree.depth if not target.p.all_greedy else tree.tokens)
    lines = []
    for (tokens, parents), choice in zip(rows, choices.tolist(), strict=True):
        depth = [0] + [-1] * (len(tokens) - 1)  # -1: rejected
        end = 0
        for node in range(1, len(tokens)):
            above = parents[node]
            if depth[above] >= 0 and tokens[node] == choice[above]:
                depth[node] = depth[above] + 1
                if depth[node] > depth[end]:
                    end = node
        path = [end]
        while path[-1]:
            path.append(parents[path[-1]])
        lines.append([len(path), choice[end], *reversed(path)])
    width = max(line[0] for line in lines)
    lines = [line + [-1] * (width - line[0]) for line in lines]
    whole = torch.tensor(lines)

    def reasons() -> Tensor:
        # Chance of each node, asked of the tensor rules: only explanations want it.
        twin = replace(tree, host=None)
        why = (_chain if tree.is_chain else _tree)(twin, target, draws).why
        assert why is not None
        return why

    return Verdict(whole[:, 2:], whole[:, 0], whole[:, 1], reasons, host=lines)


def _chain(tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
    """Node i hangs under node i-1: the accepted run is a running product."""
    b, n = tree.shape
    order = torch.arange(n, device=tree.tokens.device).expand(b, n)
    choices = _choose(target, draws, order)
    open_, same, ok = _compare(tree, choices[:, :-1])
    stand = ok.cumprod(1)
    count = 1 + stand.sum(1)
    bonus = choices.gather(1, count[:, None] - 1).squeeze(1)
    tested = open_.clone()
    tested[:, 1:] &= stand[:, :-1].bool()
    return Verdict(chain_path(tree, count), count, bonus, lambda: _why(tree, target, same, tested, order[:, :-1]))


def _tree(tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
    """A node stands if it and all its ancestors are what the target chose at their parents."""
    n = tree.shape[1]
    depth = tree.depth
    choices = _choose(target, draws, depth)
    parent = tree.parents[:, 1:].clamp(min=0)
    open_, same, ok = _compare(tree, choices.gather(1, parent))
    wrong = torch.nn.functional.pad(~ok, (1, 0))  # the root is never wrong
    stand = ~(tree.ancestors & wrong[:, None, :]).any(2)
    # Deepest first; among equals the smallest index, whatever argmax does with ties.
    order = torch.arange(n, device=depth.device)
    end = torch.where(stand, depth * n + (n - 1 - order), -1).argmax(1)
    path, count = path_to(tree, end)
    bonus = choices.gather(1, end[:, None]).squeeze(1)
    tested = open_ & stand.gather(1, parent)
    return Verdict(path, count, bonus, lambda: _why(tree, target, same, tested, parent))


def _choose(target: TargetView, draws: Draws, depth: Tensor) -> Tensor:
    """i64[B,N]: the target's next token at every node; greedy rows need no draw."""
    return target.p.choose(None if target.p.all_greedy else draws.text(depth))


def _compare(tree: DraftTree, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(open, same, ok)`` b[B,N-1] of all nodes but the root, where ``chosen`` i64[B,N-1] is the target's
    choice at each node's parent. Late leaves are never ok: one that is the same *is* its parent's bonus."""
    open_ = testable(tree)[:, 1:]
    same = tree.tokens[:, 1:] == chosen
    behind = late(tree)
    return open_, same, open_ & same if behind is None else open_ & same & ~behind[:, 1:]


def _why(tree: DraftTree, target: TargetView, same: Tensor, tested: Tensor, parent: Tensor) -> Tensor:
    """f[B,N]: the target's probability of the nodes ``tested`` b[B,N-1] under ``parent`` i64[B,N-1]."""
    if target.p.all_greedy:  # spares the one-hot vectors over the vocabulary
        chance = same.float()
    else:
        rows = torch.arange(tree.shape[0], device=parent.device)[:, None]
        chance = target.p.probs[rows, parent, tree.tokens[:, 1:]]
    return torch.nn.functional.pad(chance.masked_fill(~tested, torch.nan), (1, 0), value=torch.nan)
