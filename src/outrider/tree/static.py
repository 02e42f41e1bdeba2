"""Tree templates: shapes fixed before the tokens are known, written as paths of child ranks.

A template says "the child of rank 0 of the root, the child of rank 2 of that, ..."; whoever fills it knows
which token has which rank (a successor table, the top-k of a draft model or of a head). Medusa's sparse trees
(Cai et al., arXiv 2401.10774) and the tree of Token Recycling (Luo et al., arXiv 2408.08696) are templates.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from outrider.types import ROOT, Budget

Path = tuple[int, ...]


@dataclass(frozen=True)
class StaticTree:
    """A template in level order: node 0 is the root, the nodes of a level are neighbours, parents come first.

    ``parents[n]`` is the index of n's parent (``ROOT`` for node 0), ``ranks[n]`` its rank among the parent's
    possible children (0 for the root, unused). ``weights[n]`` orders the nodes by how much they are expected
    to be worth; it never grows from parent to child, so that the heaviest n nodes are a tree for every n.
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def size(self) -> int:
        """Drafted nodes, the root not counted (what ``Budget.nodes`` bounds)."""
        return len(self.parents) - 1

    @cached_property
    def levels(self) -> tuple[range, ...]:
        """Node indices of each level; level 0 is the root alone."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        starts = [n for n in range(len(depths)) if n == 0 or depths[n] != depths[n - 1]]
        return tuple(range(a, b) for a, b in pairwise([*starts, len(depths)]))

    @property
    def depth(self) -> int:
        """Drafted levels."""
        return len(self.levels) - 1

    @cached_property
    def width(self) -> int:
        """Most children of one node (1 for the bare root, as in ``DraftTree.width_bound``)."""
        kids = [0] * len(self.parents)
        for parent in self.parents[1:]:
            kids[parent] += 1
        return max(1, *kids) if self.size else 1

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """Child ranks from the root down to each node; ``()`` for the root."""
        paths: list[Path] = [()]
        for parent, rank in zip(self.parents[1:], self.ranks[1:], strict=True):
            paths.append((*paths[parent], rank))
        return tuple(paths)

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Node indices from the most to the least valuable, the root first; every prefix of it is a tree."""
        return tuple(sorted(range(len(self.parents)), key=lambda n: (n > 0, -self.weights[n], n)))

    def prefix(self, nodes: int) -> StaticTree:
        """The most valuable ``nodes`` drafted nodes, in level order again."""
        return self if nodes >= self.size else self._keep(self.order[: max(nodes, 0) + 1])

    def fit(self, budget: Budget) -> StaticTree:
        """The most valuable part within ``budget``: levels, ranks below ``budget.width``, nodes."""
        if self.depth <= budget.depth and self.size <= budget.nodes and max(self.ranks) < budget.width:
            return self
        kept = [
            n
            for n, path in enumerate(self.paths)
            if len(path) <= budget.depth and all(rank < budget.width for rank in path)
        ]
        return self._keep(kept).prefix(budget.nodes)

    def _keep(self, nodes: Sequence[int]) -> StaticTree:
        """The template of ``nodes`` alone; each node's parent must be among them."""
        kept = sorted(nodes)
        place = {old: new for new, old in enumerate(kept)}
        return StaticTree(
            parents=tuple(ROOT if n == 0 else place[self.parents[n]] for n in kept),
            ranks=tuple(self.ranks[n] for n in kept),
            weights=tuple(self.weights[n] for n in kept),
        )

    @classmethod
    def from_paths(cls, paths: Sequence[Sequence[int]], weights: Sequence[float] | None = None) -> StaticTree:
        """A template from paths of child ranks, in any order, the root left out.

        ``weights`` has one number per path; without it a node is worth the product of 0.4 / (rank + 1)
        along its path. Raises ``ValueError`` for a path that comes twice, is empty, or has no parent.
        """
        given = [tuple(path) for path in paths]
        for path in given:
            if not path or min(path) < 0:
                raise ValueError(f"path {path} is not a list of child ranks 0, 1, 2, ...")
        worth = [_zipf(path) for path in given] if weights is None else list(weights)
        if len(worth) != len(given):
            raise ValueError(f"{len(given)} paths and {len(worth)} weights: one weight per path is needed")
        order = sorted(range(len(given)), key=lambda i: (len(given[i]), given[i]))
        place: dict[Path, int] = {(): 0}
        parents, ranks, values = [ROOT], [0], [float("inf")]
        for i in order:
            path = given[i]
            if path in place:
                raise ValueError(f"path {path} comes twice")
            if path[:-1] not in place:
                raise ValueError(f"path {path} has no parent: {path[:-1]} is not among the paths")
            parent = place[path[:-1]]
            place[path] = len(parents)
            parents.append(parent)
            ranks.append(path[-1])
            values.append(min(worth[i], values[parent]))  # a child is never worth more than its parent
        return cls(tuple(parents), tuple(ranks), tuple(values))

    @classmethod
    def chain(cls, depth: int) -> StaticTree:
        """The first child of the first child of ..., ``depth`` levels."""
        return cls.from_paths([(0,) * level for level in range(1, depth + 1)])

    @classmethod
    def best_first(
        cls,
        rank_probs: Sequence[float] | Sequence[Sequence[float]],
        *,
        level_counts: Sequence[int] | None = None,
        nodes: int | None = None,
        depth: int | None = None,
    ) -> StaticTree:
        """The template with the largest sum of path probabilities.

        ``rank_probs[r]`` is the probability that the child of rank r is the right one, the same at each level
        or, nested, one list per level (the last one serves all deeper levels). Either ``level_counts`` fixes
        the number of nodes on each level, or ``nodes`` bounds the whole (and ``depth`` the levels, if given).
        Raises ``ValueError`` if neither is given, or a level cannot have as many nodes as asked for.
        """
        table = [[float(x) for x in row] if isinstance(row, Sequence) else [] for row in rank_probs]
        if not any(table):
            table = [[float(x) for x in rank_probs]]  # type: ignore[arg-type]
        if level_counts is not None:
            chosen = _by_levels(table, level_counts)
        elif nodes is not None:
            chosen = _by_heap(table, nodes, depth)
        else:
            raise ValueError("best_first needs level_counts or nodes")
        return cls.from_paths(list(chosen), list(chosen.values()))


def _zipf(path: Path) -> float:
    worth = 1.0
    for rank in path:
        worth *= 0.4 / (rank + 1)
    return worth


def _by_levels(table: list[list[float]], counts: Sequence[int]) -> dict[Path, float]:
    """Path -> probability: on each level the ``counts[level]`` most probable children of the level above."""
    chosen: dict[Path, float] = {}
    above: dict[Path, float] = {(): 1.0}
    for level, count in enumerate(counts):
        probs = table[min(level, len(table) - 1)]
        options = {(*path, r): p * q for path, p in above.items() for r, q in enumerate(probs)}
        if count > len(options):
            raise ValueError(f"level {level + 1} can have {len(options)} nodes at most, not {count}")
        best = sorted(options, key=lambda path: (-options[path], path))[:count]
        above = {path: options[path] for path in best}
        chosen.update(above)
    return chosen


def _by_heap(table: list[list[float]], nodes: int, depth: int | None) -> dict[Path, float]:
    """Path -> probability of the ``nodes`` most probable paths (at most ``depth`` long)."""
    chosen: dict[Path, float] = {}
    heap: list[tuple[float, Path]] = []

    def offer(path: Path, worth: float) -> None:
        if depth is None or len(path) < depth:
            for rank, prob in enumerate(table[min(len(path), len(table) - 1)]):
                heapq.heappush(heap, (-worth * prob, (*path, rank)))

    offer((), 1.0)
    while heap and len(chosen) < nodes:
        worth, path = heapq.heappop(heap)
        chosen[path] = -worth
        offer(path, -worth)
    return chosen


@lru_cache(maxsize=1)
def token_recycling_tree() -> StaticTree:
    """The 80-node template of Token Recycling: 8, 21, 25, 15, 8 and 3 nodes on six levels.

    The paper gives the counts, and for level 2 the children per parent rank: 8, 4, 3, 2, 1, 1, 1, 1. Rank
    probabilities proportional to 1 / (rank + 1) reproduce exactly that level, and put the deeper ones under
    the low ranks, as described. Their sum is 1, so that a part of the template for a smaller budget weighs
    one level more against one rank more.
    """
    total = sum(1 / (r + 1) for r in range(8))
    return StaticTree.best_first([1 / (r + 1) / total for r in range(8)], level_counts=(8, 21, 25, 15, 8, 3))
