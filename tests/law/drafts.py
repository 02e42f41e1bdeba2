"""Static drafting schemes over small vocabularies, sampled or enumerated, with laws that are known exactly.

A scheme lists the nodes of a tree: parent, way of drawing, and which of two draft laws it comes from. One
function, ``draft``, walks it; what differs between sampling and enumeration is how a node's token is picked
from its conditional law.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache

import torch
from torch import Tensor

from outrider.model.table import TableModel
from outrider.rng import Draws, Purpose, inverse_cdf
from outrider.sampling import Warped
from outrider.types import ROOT, DraftTree, Drawn, Verdict
from outrider.verify.base import TargetView

PROMPT = [1, 0, 2]
POINT, IID, WITHOUT = Drawn.POINT, Drawn.IID, Drawn.WITHOUT_REPLACEMENT


@dataclass(frozen=True)
class World:
    """``p[d]``, ``q[0][d]``, ``q[1][d]``: f64[V**d, V] next-token laws after every d tokens behind the
    prompt."""

    vocab: int
    p: list[Tensor]
    q: tuple[list[Tensor], list[Tensor]]

    def joint(self, length: int) -> Tensor:
        """f64[V,...,V]: exact law of the first ``length`` tokens."""
        joint = torch.ones(1, dtype=torch.float64)
        for d in range(length):
            joint = (joint[:, None] * self.p[d]).flatten()
        return joint.view([self.vocab] * length)

    def truncated(self, k: int) -> World:
        """Drafters that below the root propose only their ``k`` best tokens: fewer drafts to enumerate, and
        laws without mass where p has some."""

        def cut(laws: list[Tensor]) -> list[Tensor]:
            kept = [law * (law >= law.topk(k).values[:, -1:]) for law in laws[1:]]
            return [laws[0], *(law / law.sum(1, keepdim=True) for law in kept)]

        return World(self.vocab, self.p, (cut(self.q[0]), cut(self.q[1])))


@cache
def world(vocab: int, depth: int, seed: int = 0, distance: float = 0.7) -> World:
    """A target and two drafters near it, tabulated down to ``depth`` tokens."""
    target = TableModel(vocab, seed=seed)
    models = [target, target.near(distance, seed + 1000), target.near(2 * distance, seed + 2000)]
    p, a, b = (
        [
            torch.stack([m.law(PROMPT + list(t)) for t in itertools.product(range(vocab), repeat=d)])
            for d in range(depth + 1)
        ]
        for m in models
    )
    return World(vocab, p, (a, b))


@dataclass(frozen=True)
class Node:
    parent: int
    depth: int
    kind: Drawn
    source: int  # which draft law


Level = list[tuple[Drawn, int]]


def scheme(*levels: Level) -> list[Node]:
    """Every node of a level gets the same children, in the order listed."""
    nodes = [Node(ROOT, 0, POINT, 0)]
    frontier = [0]
    for d, level in enumerate(levels, 1):
        grown = []
        for parent in frontier:
            for kind, source in level:
                grown.append(len(nodes))
                nodes.append(Node(parent, d, kind, source))
        frontier = grown
    return nodes


SCHEMES: dict[str, list[Node]] = {
    "chain iid": scheme([(IID, 0)], [(IID, 0)]),
    "chain point": scheme([(POINT, 0)], [(POINT, 0)]),
    "without replacement (3,1)": scheme([(WITHOUT, 0)] * 3, [(WITHOUT, 0)]),
    "without replacement (2,2)": scheme([(WITHOUT, 0)] * 2, [(WITHOUT, 0)] * 2),
    "siblings iid": scheme([(IID, 0)] * 3, [(IID, 0)]),
    "siblings point": scheme([(POINT, 0)] * 2, [(POINT, 0)] * 2),
    "merged": scheme([(WITHOUT, 0), (IID, 1), (WITHOUT, 0), (POINT, 0)], [(WITHOUT, 1)]),
    "merged, two laws": scheme([(WITHOUT, 0), (WITHOUT, 1), (WITHOUT, 0), (WITHOUT, 1)], [(IID, 1)]),
}

Pick = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""(node, its conditional law f[R,V]) -> (which earlier row each new row continues i64[R'], tokens
i64[R'])."""


@dataclass
class Drafted:
    """``tree`` of R rows, the target's law ``p`` f64[R,N,V] at its nodes, and ``weight`` f64[R]: the
    probability of each row's draft (1 when sampled)."""

    tree: DraftTree
    p: Tensor
    weight: Tensor

    @property
    def view(self) -> TargetView:
        return TargetView(Warped.from_probs(self.p))

    def head(self, rows: int) -> Drafted:
        """The first rows."""
        tensors = {f.name: getattr(self.tree, f.name) for f in fields(DraftTree)}
        tensors = {name: x[:rows] for name, x in tensors.items() if isinstance(x, Tensor)}
        return Drafted(replace(self.tree, **tensors), self.p[:rows], self.weight[:rows])


def draft(w: World, nodes: list[Node], pick: Pick, rows: int, resort: bool = False) -> Drafted:
    """Fill a scheme with tokens. ``resort`` is a deliberate mistake: siblings sorted by their probability."""
    tokens = torch.zeros(rows, len(nodes), dtype=torch.int64)
    codes = torch.zeros(rows, len(nodes), dtype=torch.int64)
    weight = torch.ones(rows, dtype=torch.float64)
    for n, node in enumerate(nodes[1:], 1):
        siblings = [m for m in range(1, n) if nodes[m].parent == node.parent]
        law = w.q[node.source][node.depth - 1][codes[:, node.parent]]
        if node.kind == POINT:
            place = sum(nodes[m].kind == POINT for m in siblings)
            law = torch.nn.functional.one_hot(law.argsort(1, descending=True)[:, place], w.vocab).double()
        elif node.kind == WITHOUT:
            law = law.clone()
            for m in siblings:
                if nodes[m].kind == WITHOUT and nodes[m].source == node.source:
                    law.scatter_(1, tokens[:, m : m + 1], 0)
            law /= law.sum(1, keepdim=True)
        origin, token = pick(n, law)
        tokens, codes, weight = tokens[origin], codes[origin], weight[origin] * law[origin, token]
        tokens[:, n] = token
        codes[:, n] = codes[:, node.parent] * w.vocab + token
        family = [*siblings, n]
        if resort and len(family) == sum(m.parent == node.parent for m in nodes):
            law = w.q[node.source][node.depth - 1][codes[:, node.parent]]
            order = law.gather(1, tokens[:, family]).argsort(1, descending=True)
            tokens[:, family] = tokens[:, family].gather(1, order)
            codes[:, family] = codes[:, family].gather(1, order)
    p = torch.stack([w.p[node.depth][codes[:, n]] for n, node in enumerate(nodes)], 1)
    return Drafted(_tree(w, nodes, tokens, codes), p, weight)


def _tree(w: World, nodes: list[Node], tokens: Tensor, codes: Tensor) -> DraftTree:
    rows = len(tokens)
    keys = sorted({(n.parent, n.source) for n in nodes[1:]})
    laws = [w.q[source][nodes[parent].depth][codes[:, parent]] for parent, source in keys]
    law = [-1 if n.parent == ROOT or n.kind == POINT else keys.index((n.parent, n.source)) for n in nodes]
    width = max(sum(m.parent == n for m in nodes) for n in range(len(nodes)))

    def all_rows(values: list[int]) -> Tensor:
        return torch.tensor(values).expand(rows, len(nodes))

    return DraftTree(
        tokens=tokens,
        parents=all_rows([n.parent for n in nodes]),
        depth_bound=max(n.depth for n in nodes),
        width_bound=width,
        drawn=all_rows([int(n.kind) for n in nodes]),
        law=all_rows(law),
        laws=torch.stack(laws, 1),
    )


def round_draws(rows: int, seed: int) -> Draws:
    """Draws of ``rows`` requests that differ in nothing but their seed."""
    return Draws.of(torch.arange(rows), torch.full((rows,), seed), torch.full((rows,), len(PROMPT) - 1))


def sampled(w: World, nodes: list[Node], rows: int, seed: int = 0, resort: bool = False) -> Drafted:
    """``rows`` independent drafts."""
    draws = round_draws(rows, seed)

    def pick(n: int, law: Tensor) -> tuple[Tensor, Tensor]:
        return torch.arange(rows), inverse_cdf(law, draws.uniform(Purpose.DRAFT, torch.full((rows,), n)))

    drafted = draft(w, nodes, pick, rows, resort)
    drafted.weight = torch.ones(rows, dtype=torch.float64)
    return drafted


def enumerated(w: World, nodes: list[Node]) -> Drafted:
    """Every draft of positive probability, once, with its probability."""
    return draft(w, nodes, lambda n, law: tuple(law.nonzero().unbind(1)), 1)


def emitted(w: World, tree: DraftTree, verdict: Verdict, length: int, seed: int) -> Tensor:
    """i64[R,length]: the first tokens of each row; what the round did not emit is drawn from p."""
    rows = tree.shape[0]
    draws = round_draws(rows, seed + 5000)
    code = torch.zeros(rows, dtype=torch.int64)
    columns = []
    for i in range(length):
        fresh = inverse_cdf(w.p[i][code], draws.uniform(Purpose.POLICY, torch.full((rows,), i)))
        token = torch.where(verdict.count - 1 == i, verdict.bonus, fresh)
        if i + 1 < verdict.path.shape[1]:
            node = verdict.path[:, i + 1].clamp(min=0)
            drafted = tree.tokens.gather(1, node[:, None]).squeeze(1)
            token = torch.where(verdict.count - 1 > i, drafted, token)
        columns.append(token)
        code = code * w.vocab + token
    return torch.stack(columns, 1)
