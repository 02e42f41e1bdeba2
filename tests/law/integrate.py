"""Exact laws of a rule, from the rule itself as a black box.

A verifier is a pure function of its coins, and a step function of each: a node passes for coins below its
threshold, and the bonus grows with its draw. So the coins can be integrated exactly without looking inside
and without a second implementation that could share a mistake: bisection finds every step to 2**-34, and the
probability of an outcome is a product of step widths. All drafts, nodes and steps are rows of one batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from outrider.rng import Purpose
from outrider.sampling import Warped
from outrider.types import DraftTree, Verdict
from outrider.verify.base import TargetView, Verifier

from .drafts import Drafted, Node, World

HIGH = 1 - 2.0**-53  # the largest coin: what it cannot reject is accepted always
STEPS = 34


@dataclass
class Coins:
    """Stands in for ``Draws``: ``accept`` f64[B,N] by node, ``bonus`` f64[B], ``texts`` f64[B,depth] by
    depth."""

    accept: Tensor | None = None
    bonus: Tensor | None = None
    texts: Tensor | None = None

    def uniform(self, purpose: Purpose, index: Tensor) -> Tensor:
        if purpose is Purpose.ACCEPT:
            return self.accept.gather(1, index)
        assert purpose is Purpose.RESIDUAL
        return self.bonus.view([-1] + [1] * (index.dim() - 1)).expand(index.shape)

    def text(self, depth: Tensor) -> Tensor:
        return self.texts.gather(1, depth)


def repeat(drafted: Drafted, times: int) -> Drafted:
    """Every row ``times`` times, row by row."""
    tree = drafted.tree
    rows = {f.name: getattr(tree, f.name) for f in fields(DraftTree)}
    rows = {k: v.repeat_interleave(times, 0) for k, v in rows.items() if isinstance(v, Tensor)}
    return Drafted(
        replace(tree, **rows),
        drafted.p.repeat_interleave(times, 0),
        drafted.weight.repeat_interleave(times, 0),
    )


def families(nodes: list[Node], n: int) -> tuple[list[int], list[int], list[int]]:
    """(nodes on the path to n, root left out; their earlier siblings; n's children)."""
    path, aside = [], []
    at = n
    while at > 0:
        path.append(at)
        aside += [m for m in range(1, at) if nodes[m].parent == nodes[at].parent]
        at = nodes[at].parent
    return path, aside, [m for m in range(1, len(nodes)) if nodes[m].parent == n]


def bisect(passes: object, shape: tuple[int, ...]) -> Tensor:
    """f64[shape]: the largest coin for which ``passes(coin)`` holds, 0 where none does, 1 where all do."""
    low, high = torch.zeros(shape, dtype=torch.float64), torch.full(shape, 1.0, dtype=torch.float64)
    never, always = ~passes(low), passes(torch.full(shape, HIGH, dtype=torch.float64))
    for _ in range(STEPS):
        middle = (low + high) / 2
        ok = passes(middle)
        low, high = torch.where(ok, middle, low), torch.where(ok, high, middle)
    return torch.where(never, 0.0, torch.where(always, 1.0, low))


def thresholds(rule: Verifier, drafted: Drafted, nodes: list[Node]) -> tuple[Tensor, Tensor]:
    """f64[R,N]: with which probability each node is accepted once its parent is and its earlier siblings are
    not (root: 1); and what the rule itself says about it in ``why``."""
    r, n = drafted.tree.shape
    many = repeat(drafted, n)
    base = torch.full((n, n), HIGH, dtype=torch.float64)
    for node in range(n):
        base[node, families(nodes, node)[0]] = 0.0
    base, itself = base.repeat(r, 1), torch.arange(n).repeat(r)

    def run(coin: Tensor) -> Verdict:
        accept = base.scatter(1, itself[:, None], coin[:, None])
        return rule.verify(many.tree, many.view, Coins(accept, torch.zeros(r * n, dtype=torch.float64)))

    found = bisect(lambda coin: (run(coin).path == itself[:, None]).any(1), (r * n,)).view(r, n)
    said = run(torch.zeros(r * n, dtype=torch.float64)).why.gather(1, itself[:, None]).view(r, n)
    return found, said


def bonus_laws(rule: Verifier, drafted: Drafted, nodes: list[Node], vocab: int) -> tuple[Tensor, Tensor]:
    """f64[R,N,V]: the law of the bonus when the walk ends at each node; b[R,N]: whether it can end there."""
    r, n = drafted.tree.shape
    accept = torch.full((n, n), HIGH, dtype=torch.float64)
    for node in range(n):
        accept[node, families(nodes, node)[0]] = 0.0
    steps = vocab - 1
    many = repeat(drafted, n * steps)
    accept = accept.repeat_interleave(steps, 0).repeat(r, 1)
    node = torch.arange(n).repeat_interleave(steps).repeat(r)
    step = torch.arange(steps).repeat(r * n)

    def run(coin: Tensor) -> Verdict:
        return rule.verify(many.tree, many.view, Coins(accept, coin))

    edges = bisect(lambda coin: run(coin).bonus <= step, (r * n * steps,)).view(r, n, steps)
    verdict = run(torch.zeros(r * n * steps, dtype=torch.float64))
    end = verdict.path.gather(1, verdict.count[:, None] - 1).squeeze(1)
    full = torch.nn.functional.pad(torch.nn.functional.pad(edges, (1, 0)), (0, 1), value=1.0)
    return full.diff(dim=2), (end == node).view(r, n, steps)[:, :, 0]


def joint_of_rejection(rule: Verifier, w: World, drafted: Drafted, nodes: list[Node]) -> Tensor:
    """f64[V,...,V]: exact joint law of depth+1 tokens under a rule with acceptance coins."""
    passed, _ = thresholds(rule, drafted, nodes)
    laws, possible = bonus_laws(rule, drafted, nodes, w.vocab)
    length = max(node.depth for node in nodes) + 1
    parts = [torch.zeros(w.vocab ** (d + 1), dtype=torch.float64) for d in range(length)]
    total = torch.zeros((), dtype=torch.float64)
    for n, node in enumerate(nodes):
        path, aside, children = families(nodes, n)
        chance = drafted.weight * passed[:, path].prod(1) * (1 - passed[:, aside + children]).prod(1)
        assert bool(possible[chance > 1e-12, n].all()), f"the walk should be able to end at node {n}"
        total += chance.sum()
        prefix = torch.zeros(len(chance), dtype=torch.int64)
        for m in reversed(path):
            prefix = prefix * w.vocab + drafted.tree.tokens[:, m]
        codes = prefix[:, None] * w.vocab + torch.arange(w.vocab)
        parts[node.depth].index_add_(0, codes.flatten(), (chance[:, None] * laws[:, n]).flatten())
    assert abs(float(total) - 1) < 1e-9, f"outcomes add up to {float(total)}"
    return complete(w, parts)


def joint_of_match(rule: Verifier, w: World, drafted: Drafted, nodes: list[Node]) -> Tensor:
    """f64[V,...,V]: exact joint law of depth+1 tokens under a rule whose draws are keyed by depth.

    Between two neighbouring points where *some* node of that depth changes its choice, nothing changes: one
    coin per cell, weighted with the cell's width, is the whole integral. Here the points are known: they are
    the partial sums of p.
    """
    length = max(node.depth for node in nodes) + 1
    r, n = drafted.tree.shape
    cells = torch.zeros(r, 1, 0, dtype=torch.float64)
    width = torch.ones(r, 1, dtype=torch.float64)
    for d in range(length):
        level = [m for m in range(n) if nodes[m].depth == d]
        edges = drafted.p[:, level].cumsum(2)[:, :, :-1].flatten(1)
        edges = torch.nn.functional.pad(torch.nn.functional.pad(edges.sort(1).values, (1, 0)), (0, 1), value=1.0)
        middle, wide = (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=1)
        old, new = cells.shape[1], middle.shape[1]
        cells = torch.cat(
            [cells.repeat_interleave(new, 1), middle.repeat(1, old)[:, :, None]], 2
        )  # f64[R, cells, depth]
        width = width.repeat_interleave(new, 1) * wide.repeat(1, old)
    many = repeat(drafted, cells.shape[1])
    verdict = rule.verify(many.tree, many.view, Coins(texts=cells.flatten(0, 1)))
    mass = many.weight * width.flatten()
    parts = [torch.zeros(w.vocab ** (d + 1), dtype=torch.float64) for d in range(length)]
    prefix = torch.zeros(len(mass), dtype=torch.int64)
    for d in range(length):
        ends = verdict.count == d + 1
        parts[d].index_add_(0, (prefix * w.vocab + verdict.bonus)[ends], mass[ends])
        if d + 1 < length:
            node = verdict.path[:, d + 1].clamp(min=0)
            prefix = prefix * w.vocab + many.tree.tokens.gather(1, node[:, None]).squeeze(1)
    return complete(w, parts)


def complete(w: World, parts: list[Tensor]) -> Tensor:
    """f64[V,...,V]: ``parts[d]`` holds the mass of outputs of d+1 tokens; shorter ones go on with p."""
    joint = parts[0]
    for d, part in enumerate(parts[1:], 1):
        joint = (joint[:, None] * w.p[d]).flatten() + part
    return joint.view([w.vocab] * len(parts))


def view_of(p: Tensor) -> TargetView:
    """A target whose law at the nodes is ``p`` f[B,N,V]."""
    return TargetView(Warped.from_probs(p))
