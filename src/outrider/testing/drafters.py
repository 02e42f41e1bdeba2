"""Wrappers that make a drafter always wrong or always right, to bring a loop to its extremes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from outrider.draft.base import DraftContext, Drafter
from outrider.rng import Draws
from outrider.types import Budget, DraftTree, Drawn, Outcome

if TYPE_CHECKING:
    from outrider.run.row import Row
    from outrider.testing.decode import Texts


class Wrapped(Drafter):
    """Passes everything on to ``inner``. ``texts`` is what plain decoding says: see ``decode.texts``."""

    def __init__(self, inner: Drafter, texts: Texts) -> None:
        self.inner, self.texts = inner, texts
        self.name, self.needs = inner.name, inner.needs
        self.kinds, self.branching = inner.kinds, inner.branching

    def bind(self, context: DraftContext) -> None:
        self.vocab = context.vocab_size
        self.inner.bind(context)

    def admit(self, row: Row) -> None:
        self.inner.admit(row)

    def propose(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        return self.inner.propose(rows, budget, draws)

    def observe(self, outcome: Outcome) -> None:
        self.inner.observe(outcome)

    def drop(self, row: Row) -> None:
        self.inner.drop(row)

    def fork(self, row: Row, clone: Row) -> None:
        self.inner.fork(row, clone)

    def ahead(self, row: Row) -> list[int]:
        """What plain decoding says from here on."""
        text = self.texts[tuple(row.tokens[: row.prompt_length]), row.seed, row.sample]
        return text[row.output_length :]


class Hostile(Wrapped):
    """Whatever the inner drafter proposes, except the token that is right; two wrong tokens where it proposes
    nothing. Nothing is ever accepted, and the inner drafter sees it."""

    def propose(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        tree = self.inner.propose(rows, budget, draws)
        right = [(self.ahead(row) or [0])[0] for row in rows]
        if tree.shape[1] == 1:
            chains = [[(r + 1) % self.vocab, (r + 2) % self.vocab][: min(budget.depth, budget.nodes)] for r in right]
            pairs = zip(rows, chains, strict=True)
            return DraftTree.build([([row.tokens[-1], *c], list(range(-1, len(c)))) for row, c in pairs])
        truth = torch.tensor(right, device=tree.tokens.device)[:, None]
        hit = (tree.parents == 0) & (tree.tokens == truth)
        tokens = torch.where(hit, (truth + 1) % self.vocab, tree.tokens)
        host = tree.host
        if host is not None:
            host = [(tokens[b, : len(t)].tolist(), parents) for b, (t, parents) in enumerate(host)]
        return replace(tree, tokens=tokens, host=host)


class Oracle(Wrapped):
    """Drafts what plain decoding will say, as deep as the budget allows. The inner drafter only watches."""

    def __init__(self, inner: Drafter, texts: Texts) -> None:
        super().__init__(inner, texts)
        self.kinds, self.branching = frozenset({Drawn.POINT}), False

    def propose(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        deep = min(budget.depth, budget.nodes)
        chains = [[row.tokens[-1], *self.ahead(row)[:deep]] for row in rows]
        return DraftTree.build([(chain, list(range(-1, len(chain) - 1))) for chain in chains], origin="oracle")
