"""Growing trees with a drafter that scores level by level: chains, static templates, top-k beams.

A structure decides *which* nodes exist; a ``Scorer`` (a draft model, say) tells what may follow a node. A structure
declares how its nodes are drawn, which decides the verifiers it may be combined with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from outrider.policy.base import LevelView
from outrider.rng import Draws, Purpose
from outrider.sampling import Warped
from outrider.tree.static import StaticTree
from outrider.types import PADDING, ROOT, Budget, DraftTree, Drawn


@dataclass
class Growing:
    """A tree under construction. Node 0 is the root; nodes are only ever added, parents first."""

    tokens: Tensor  # i64[B,M]
    parents: Tensor  # i64[B,M]
    depth: Tensor  # i64[B,M]
    ancestors: Tensor  # b[B,M,M]
    paths: Tensor  # i64[B,M,D]: tokens from below the root down to the node, -1 behind
    drawn: Tensor  # i64[B,M]
    law: Tensor  # i64[B,M]
    laws: list[Tensor] = field(default_factory=list)  # f[B,Q,V] pieces
    levels: int = 0
    width: int = 1

    @classmethod
    def start(cls, roots: Tensor) -> Growing:
        """From i64[B] root tokens."""
        root = roots[:, None]
        return cls(
            tokens=root,
            parents=torch.full_like(root, ROOT),
            depth=torch.zeros_like(root),
            ancestors=torch.ones(len(roots), 1, 1, dtype=torch.bool, device=roots.device),
            paths=root.new_empty(len(roots), 1, 0),
            drawn=torch.zeros_like(root),
            law=torch.full_like(root, -1),
        )

    def add(self, tokens: Tensor, parents: Tensor, drawn: Tensor, law: Tensor, keep: Tensor | None = None) -> Tensor:
        """Append W nodes per row (all i64[B,W]); ``keep`` b[B,W] False makes a node padding. Returns their indices."""
        b, w = tokens.shape
        m = self.tokens.shape[1]
        above = parents.clamp(min=0)
        own = torch.eye(w, dtype=torch.bool, device=tokens.device).expand(b, w, w)
        inherited = self.ancestors.gather(1, above[:, :, None].expand(b, w, m))
        old = torch.cat([self.ancestors, self.ancestors.new_zeros(b, m, w)], dim=2)
        self.ancestors = torch.cat([old, torch.cat([inherited, own], dim=2)], dim=1)
        depth = self.depth.gather(1, above) + 1
        self._extend_paths(tokens, above, depth)
        self.tokens = torch.cat([self.tokens, tokens], dim=1)
        self.depth = torch.cat([self.depth, depth], dim=1)
        marked = parents if keep is None else torch.where(keep, parents, PADDING)
        self.parents = torch.cat([self.parents, marked], dim=1)
        self.drawn = torch.cat([self.drawn, drawn], dim=1)
        self.law = torch.cat([self.law, law], dim=1)
        self.levels += 1
        return torch.arange(m, m + w, device=tokens.device).expand(b, w)

    def _extend_paths(self, tokens: Tensor, above: Tensor, depth: Tensor) -> None:
        b, m, d = self.paths.shape
        w = tokens.shape[1]
        inherited = self.paths.gather(1, above[:, :, None].expand(b, w, d))
        new = torch.cat([inherited, tokens.new_full((b, w, 1), -1)], dim=2)
        new.scatter_(2, depth[:, :, None] - 1, tokens[:, :, None])
        self.paths = torch.cat([torch.cat([self.paths, self.paths.new_full((b, m, 1), -1)], dim=2), new], dim=1)

    def add_laws(self, q: Tensor) -> int:
        """Append f[B,W,V] rows of q; returns the index of the first."""
        first = sum(piece.shape[1] for piece in self.laws)
        self.laws.append(q)
        return first

    def finish(self, origin: str) -> DraftTree:
        """The tree as parts pass it on."""
        return DraftTree(
            tokens=self.tokens,
            parents=self.parents,
            depth_bound=self.levels,
            width_bound=self.width,
            drawn=self.drawn,
            law=self.law,
            laws=torch.cat(self.laws, dim=1) if self.laws else None,
            origins=("target", origin),
        )


@dataclass(frozen=True)
class Level:
    """What may follow W nodes: raw ``logits`` f[B,W,V] and, when somebody draws, the law ``q`` after warp."""

    logits: Tensor
    scorer: Scorer
    paths: Tensor  # i64[B,W,D]

    @cached_property
    def q(self) -> Warped:
        return self.scorer.warp(self.logits, self.paths)


class Scorer(ABC):
    """Tells what may follow a node. ``greedy`` b[B] are the rows at temperature 0."""

    greedy: Tensor
    all_greedy: bool

    @abstractmethod
    def expand(self, tree: Growing, nodes: Tensor) -> Level:
        """Score ``nodes`` i64[B,W] of ``tree`` (the root first, then nodes whose parents were expanded)."""

    @abstractmethod
    def warp(self, logits: Tensor, paths: Tensor) -> Warped:
        """The law after the request's own sampling parameters, along ``paths`` i64[B,W,D]."""


class Structure(ABC):
    """The shape of a model-drafted tree."""

    kinds: frozenset[Drawn]
    branching: bool

    @abstractmethod
    def grow(self, scorer: Scorer, tree: Growing, budget: Budget, draws: Draws) -> Growing:
        """Grow ``tree`` (a root) within ``budget``."""


class Chain(Structure):
    """One token after another, each drawn from the drafter's law (its argmax at temperature 0)."""

    kinds = frozenset({Drawn.IID, Drawn.POINT})
    branching = False

    def grow(self, scorer: Scorer, tree: Growing, budget: Budget, draws: Draws) -> Growing:
        b = tree.tokens.shape[0]
        node = torch.zeros(b, 1, dtype=torch.int64, device=tree.tokens.device)
        alive = torch.ones(b, 1, dtype=torch.bool, device=node.device)
        drawn = torch.where(scorer.greedy[:, None], int(Drawn.POINT), int(Drawn.IID))
        for depth in range(min(budget.depth, budget.nodes)):
            level = scorer.expand(tree, node)
            if scorer.all_greedy:
                token, law = level.q.argmax, torch.full_like(node, -1)
            else:
                token = level.q.choose(draws.uniform(Purpose.DRAFT, node + 1))
                first = tree.add_laws(level.q.probs)
                law = torch.where(scorer.greedy[:, None], -1, first)
            alive = alive & (token >= 0)  # -1: the sampling parameters forbid every token here
            token = token.clamp(min=0)
            node = tree.add(token, node, drawn, law, keep=alive)
            if budget.more is not None:
                alive = alive & budget.more(LevelView(depth + 1, token, level.logits))[:, None]
                if not bool(alive.any()):
                    break
        return tree


class Template(Structure):
    """A fixed shape: each node of a ``StaticTree`` is the child of a given rank.

    ``draw="top"``: ranks by probability; point masses. ``draw="sample"``: siblings are drawn without replacement
    by Gumbel-top-k in the order of their perturbed scores (rows at temperature 0 take the top ranks).
    """

    branching = True

    def __init__(self, template: StaticTree, draw: Literal["top", "sample"] = "top") -> None:
        self.template, self.draw = template, draw
        sampled = {Drawn.WITHOUT_REPLACEMENT, Drawn.POINT}
        self.kinds = frozenset(sampled if draw == "sample" else {Drawn.POINT})

    def grow(self, scorer: Scorer, tree: Growing, budget: Budget, draws: Draws) -> Growing:
        shape = self.template.fit(budget)
        b, device = tree.tokens.shape[0], tree.tokens.device
        tree.width = shape.width
        parents = torch.tensor(shape.parents, device=device)
        ranks = torch.tensor(shape.ranks, device=device)
        going = torch.ones(b, 1, dtype=torch.bool, device=device)
        for depth, nodes in enumerate(shape.levels[1:], start=1):
            index = torch.arange(nodes.start, nodes.stop, device=device)
            inner, place = parents[index].unique(sorted=True, return_inverse=True)
            level = scorer.expand(tree, inner.expand(b, -1))
            tokens, valid, drawn, law = self._children(scorer, tree, level, inner, draws, shape.width)
            rank = ranks[index]
            alive = tree.parents[:, parents[index]] != PADDING
            tree.add(
                tokens[:, place, rank],
                parents[index].expand(b, -1),
                drawn[:, None].expand(b, len(index)),
                law[:, place],
                keep=valid[:, place, rank] & alive & going,
            )
            if budget.more is not None:
                scores = level.logits[:, place]
                going = going & budget.more(LevelView(depth, tokens[:, place, rank], scores))[:, None]
                if not bool(going.any()):
                    break
        return tree

    def _children(
        self, scorer: Scorer, tree: Growing, level: Level, inner: Tensor, draws: Draws, width: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(tokens i64[B,W,k], valid b[B,W,k], drawn i64[B], law i64[B,W]) of the expanded nodes."""
        b = level.logits.shape[0]
        scores, tokens = level.logits.topk(width, dim=2)
        valid = scores > -torch.inf
        drawn = torch.full((b,), int(Drawn.POINT), device=tokens.device)
        law = torch.full((b, len(inner)), -1, device=tokens.device)
        if self.draw == "top" or scorer.all_greedy:
            return tokens, valid, drawn, law
        noise = draws.gumbel(Purpose.DRAFT, inner.expand(b, -1), level.logits.shape[2])
        perturbed, sampled = (level.q.probs.double().log() + noise).topk(width, dim=2)
        first = tree.add_laws(level.q.probs)
        greedy = scorer.greedy
        tokens = torch.where(greedy[:, None, None], tokens, sampled)
        valid = torch.where(greedy[:, None, None], valid, perturbed > -torch.inf)
        drawn = torch.where(greedy, drawn, int(Drawn.WITHOUT_REPLACEMENT))
        numbers = first + torch.arange(len(inner), device=tokens.device)
        return tokens, valid, drawn, torch.where(greedy[:, None], law, numbers)


class TopK(Structure):
    """Level-by-level growth (EAGLE-2, arXiv 2406.16858, section 4): expand the ``width`` most probable nodes of each
    level into their ``width`` most probable children, and keep the ``nodes`` most probable of all at the end.

    A node's value is the product of draft probabilities on its path (temperature 1). All nodes are point masses.
    """

    kinds = frozenset({Drawn.POINT})
    branching = True

    def grow(self, scorer: Scorer, tree: Growing, budget: Budget, draws: Draws) -> Growing:
        b, device = tree.tokens.shape[0], tree.tokens.device
        k = min(budget.width, budget.nodes)
        frontier = torch.zeros(b, 1, dtype=torch.int64, device=device)
        score = torch.zeros(b, 1, dtype=torch.float64, device=device)  # of every node so far
        going = torch.ones(b, 1, dtype=torch.bool, device=device)
        for depth in range(budget.depth):
            level = scorer.expand(tree, frontier)
            best, tokens = level.logits.log_softmax(dim=2, dtype=torch.float32).topk(k, dim=2)
            w = frontier.shape[1]
            value = (score.gather(1, frontier)[:, :, None] + best.double()).reshape(b, w * k)
            parents = frontier[:, :, None].expand(b, w, k).reshape(b, w * k)
            zero = torch.zeros_like(parents)
            value = value.masked_fill(~going, -torch.inf)
            index = tree.add(tokens.reshape(b, w * k), parents, zero, zero - 1, keep=going.expand(b, w * k))
            score = torch.cat([score, value], dim=1)
            if budget.more is not None:
                scores = level.logits[:, :, None].expand(b, w, k, -1).reshape(b, w * k, -1)
                going = going & budget.more(LevelView(depth + 1, tokens.reshape(b, w * k), scores))[:, None]
                if not bool(going.any()):
                    break
            frontier = index.gather(1, value.topk(min(k, w * k), dim=1).indices)
        return self._best(tree, score, budget.nodes, k)

    def _best(self, tree: Growing, score: Tensor, nodes: int, width: int) -> Growing:
        """Keep the root and the ``nodes`` most valuable; a parent is never worth less than its child, and the
        depth settles ties, so that what is kept is a tree."""
        tree.width = width
        total = tree.tokens.shape[1]
        if total <= nodes + 1:
            return tree
        value = score - 1e-9 * tree.depth
        value[:, 0] = torch.inf
        kept = value.topk(nodes + 1, dim=1).indices.sort(dim=1).values  # i64[B,K], parents still first
        place = torch.full_like(tree.tokens, -1).scatter(
            1, kept, torch.arange(nodes + 1, device=kept.device).expand_as(kept)
        )
        parents = tree.parents.gather(1, kept)
        moved = place.gather(1, parents.clamp(min=0))
        tree.parents = torch.where(parents >= 0, moved, parents)
        for name in ("tokens", "depth", "drawn", "law"):
            setattr(tree, name, getattr(tree, name).gather(1, kept))
        return tree
