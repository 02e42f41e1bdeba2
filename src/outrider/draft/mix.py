"""Several drafters as one: the first that has something to say, or all of them in one tree.

Combinations nest, and are drafters like any other: ``Priority([Merge([a, b]), c])``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from outrider.draft.base import DraftContext, Drafter
from outrider.errors import ConfigError
from outrider.rng import Draws, absorb
from outrider.tree.merge import merge_trees, stack_rows, take_rows
from outrider.types import ROOT, Budget, DraftTree, Drawn, Needs, Outcome

if TYPE_CHECKING:
    from outrider.run.row import Row

_SALT = 0x6D6978  # "mix": keeps the children's draws apart from one another


class Mixture(Drafter):
    """What all combinations share: every child is bound, sees every request and observes every outcome.

    ``needs``, ``kinds`` and ``branching`` are the union of the children's. Raises ``ConfigError`` for fewer
    than one child and for a child that appears twice, which would learn everything twice.
    """

    joint = "+"

    def __init__(self, drafters: Sequence[Drafter], name: str | None = None) -> None:
        self.drafters = tuple(drafters)
        if not self.drafters:
            raise ConfigError(f"{type(self).__name__} has no drafters", hint="Give at least one")
        parts = [id(part) for part in leaves(self)]
        if len(set(parts)) < len(parts):
            raise ConfigError(
                f"{type(self).__name__} holds the same drafter twice",
                why="it would observe every outcome twice",
                hint="Build a second one",
            )
        self.name = self.joint.join(drafter.name for drafter in self.drafters) if name is None else name
        self.needs = Needs()
        self.kinds = frozenset[Drawn]()
        for drafter in self.drafters:
            self.needs = self.needs | drafter.needs
            self.kinds = self.kinds | drafter.kinds
        self.branching = any(drafter.branching for drafter in self.drafters)

    @property
    def sources(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(leaf.name for leaf in leaves(drafter)) for drafter in self.drafters)

    def bind(self, context: DraftContext) -> None:
        for drafter in self.drafters:
            drafter.bind(context)

    def admit(self, row: Row) -> None:
        for drafter in self.drafters:
            drafter.admit(row)

    def observe(self, outcome: Outcome) -> None:
        for drafter in self.drafters:
            drafter.observe(outcome)

    def drop(self, row: Row) -> None:
        for drafter in self.drafters:
            drafter.drop(row)

    def fork(self, row: Row, clone: Row) -> None:
        for drafter in self.drafters:
            drafter.fork(row, clone)

    def _draws(self, child: int, draws: Draws) -> Draws:
        """The child's own numbers: two drafters that draw in one round must not meet the same coins. Drafters
        of point masses draw nothing that matters."""
        if self.drafters[child].kinds <= {Drawn.POINT}:
            return draws
        return Draws(absorb(absorb(draws.stream, _SALT), child), draws.position)


class Priority(Mixture):
    """Per row, the tree of the first drafter that proposes anything.

    The first drafter is asked about all rows, the next about those it had nothing for, and so on. A drafter
    declines by proposing the root alone, as ``SuffixDrafter`` does below its ``min_match``. Where a drafter
    on an accelerator may decline, finding out waits for it once."""

    joint = "|"

    def propose(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        pieces: list[tuple[list[int], DraftTree]] = []
        left = list(range(len(rows)))
        for child, drafter in enumerate(self.drafters):
            own = self._draws(child, draws)
            if len(left) < len(rows):
                index = torch.tensor(left, device=own.stream.device)
                own = Draws(own.stream[index], own.position[index])
            tree = _ask(drafter, [rows[b] for b in left], budget.share(child), own)
            served = [True] * len(left) if child == len(self.drafters) - 1 else _served(tree)
            if all(served):
                pieces.append((left, tree))
                break
            if any(served):
                yes = [i for i, hit in enumerate(served) if hit]
                pieces.append(([left[i] for i in yes], take_rows(tree, yes)))
                left = [b for b, hit in zip(left, served, strict=True) if not hit]
        return pieces[0][1] if len(pieces) == 1 else stack_rows(pieces)


class Merge(Mixture):
    """Per row, one tree from the proposals of all drafters, within the budget.

    Earlier drafters come first: their nodes stand first among siblings, keep their origin where two propose
    the same, and are kept when the budget is short. ``caps[i]`` bounds the nodes asked of drafter i, so that
    one with a large tree leaves room (None: the whole budget). See ``outrider.tree.merge`` for what is shared
    and what is dropped, and why never by the value of a drawn token.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        caps: Sequence[int | None] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(drafters, name)
        self.caps = tuple([None] * len(self.drafters) if caps is None else caps)
        if len(self.caps) != len(self.drafters):
            raise ConfigError(
                f"caps has {len(self.caps)} entries for {len(self.drafters)} drafters",
                hint="Give one per drafter, None for no cap",
            )
        if len(self.drafters) > 1:
            self.branching = True

    def propose(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        merged: DraftTree | None = None
        for child, (drafter, cap) in enumerate(zip(self.drafters, self.caps, strict=True)):
            share = budget.share(child)
            if cap is not None:
                share = replace(share, nodes=min(cap, share.nodes))
            # Each drafter gets its budget whatever the others found: a budget that depended on drawn tokens
            # would have to be accounted for in the law.
            tree = _ask(drafter, rows, share, self._draws(child, draws))
            if merged is None:
                if tree.shape[1] - 1 <= budget.nodes and tree.width_bound <= budget.width:
                    merged = tree
                    continue
                merged = DraftTree.roots(tree.tokens[:, 0], tree.tokens.device)
                merged.origins = tree.origins
            merged = merge_trees(merged, tree, nodes=budget.nodes, width=budget.width)
        assert merged is not None  # there is at least one drafter
        return merged


def leaves(drafter: Drafter) -> Iterator[Drafter]:
    """The drafters a combination is made of in the end; the drafter itself if it is none."""
    if isinstance(drafter, Mixture):
        for child in drafter.drafters:
            yield from leaves(child)
    else:
        yield drafter


def _ask(drafter: Drafter, rows: Sequence[Row], share: Budget, draws: Draws) -> DraftTree:
    """A proposal within ``share``; the roots alone, without asking, where that is nothing."""
    if share.empty:
        tree = DraftTree.build([([row.tokens[-1]], [ROOT]) for row in rows], device=draws.stream.device)
        tree.origins = ("target", *(leaf.name for leaf in leaves(drafter)))
        return tree
    return drafter.propose(rows, share, draws)


def _served(tree: DraftTree) -> list[bool]:
    """Which rows have more than a root."""
    if tree.host is not None:
        return [len(tokens) > 1 for tokens, _ in tree.host]
    if tree.shape[1] == 1:
        return [False] * tree.shape[0]
    return tree.real[:, 1:].any(1).tolist()
