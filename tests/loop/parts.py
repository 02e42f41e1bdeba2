"""A drafter over a table model that may learn from its rejected drafts, and parts with one deliberate mistake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from outrider.draft.base import Drafter
from outrider.model.table import TableModel
from outrider.rng import Draws, Purpose, absorb, inverse_cdf, to_uniform
from outrider.run.row import Row
from outrider.sampling import warp
from outrider.types import Budget, DraftTree, Drawn, Guarantee, Needs, Outcome, Verdict
from outrider.verify.base import TargetView, Verifier
from outrider.verify.walk import chain_path


class TableDrafter(Drafter):
    """A chain drawn from a near table. With ``learning`` it remembers, per request and position, what it drafted
    there and saw thrown away, and does not draft that token there again."""

    kinds = frozenset({Drawn.IID})

    def __init__(self, model: TableModel, learning: bool = False) -> None:
        self.model, self.learning = model, learning
        self.thrown: dict[int, dict[int, int]] = {}

    def admit(self, row: Row) -> None:
        self.thrown[row.id] = {}

    def drop(self, row: Row) -> None:
        del self.thrown[row.id]

    def propose(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        texts = [list(row.tokens) for row in rows]
        laws = []
        for depth in range(1, budget.depth + 1):
            q = self._law(rows, texts)
            token = inverse_cdf(q, draws.uniform(Purpose.DRAFT, torch.full((len(rows),), depth)))
            for text, drafted in zip(texts, token.tolist(), strict=True):
                text.append(drafted)
            laws.append(q)
        tokens = torch.tensor([text[-budget.depth - 1 :] for text in texts])
        node = torch.arange(budget.depth + 1).expand(tokens.shape)
        return DraftTree(
            tokens=tokens,
            parents=node - 1,
            depth_bound=budget.depth,
            drawn=torch.full_like(tokens, int(Drawn.IID)),
            law=node - 1,
            laws=torch.stack(laws, 1),
            origins=("target", "table"),
        )

    def _law(self, rows: Sequence[Row], texts: list[list[int]]) -> Tensor:
        """f64[B,V]: after the request's own temperature and top-p, and what was learnt."""
        m = self.model.modulus
        keys = [sum((i % (m - 1) + 1) * (token + 1) for i, token in enumerate(text)) % m for text in texts]
        logits = self.model.table[torch.tensor(keys), torch.tensor([text[-1] for text in texts])]
        q = warp(logits[:, None], [row.sampling for row in rows]).probs[:, 0]
        if self.learning:
            known = [self.thrown[row.id].get(len(text), -1) for row, text in zip(rows, texts, strict=True)]
            token = torch.tensor(known)
            spared = q.scatter(1, token.clamp(min=0)[:, None], 0.0)
            wiser = spared / spared.sum(1, keepdim=True)
            q = torch.where(((token >= 0) & (spared.sum(1) > 0))[:, None], wiser, q)
        return q

    def observe(self, outcome: Outcome) -> None:
        """Called when the rows have grown: what lies behind the accepted nodes was thrown away."""
        if not self.learning or outcome.verdict is None:
            return
        lines = zip(outcome.rows, outcome.tree.tokens.tolist(), outcome.verdict.count.tolist(), strict=True)
        for row, tokens, count in lines:
            assert isinstance(row, Row)
            root = len(row.tokens) - count - 1  # index of the tree's root: count tokens were added behind it
            self.thrown[row.id] = {root + n: tokens[n] for n in range(count, len(tokens))}


class PositionKeyed(Draws):
    """Round draws keyed by the position of the token, not by the round: the same coin twice. For chains."""

    def uniform(self, purpose: Purpose, index: Tensor) -> Tensor:
        place = self.position.view(-1, *[1] * (index.dim() - 1)) + index
        stream = absorb(self.stream, int(purpose)).view(-1, *[1] * (index.dim() - 1))
        return to_uniform(absorb(stream, place))


class ReusedCoins(Verifier):
    """A rule that is handed ``PositionKeyed`` draws."""

    def __init__(self, rule: Verifier) -> None:
        self.rule, self.needs = rule, rule.needs
        self.guarantee, self.kinds, self.branching = rule.guarantee, rule.kinds, rule.branching

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        return self.rule.verify(tree, target, PositionKeyed(draws.stream, draws.position))


class ReusedDrafts(TableDrafter):
    """A drafter that draws with ``PositionKeyed`` draws."""

    def propose(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        return super().propose(rows, budget, PositionKeyed(draws.stream, draws.position))


class Block(Verifier):
    """Block verification (Sun et al. 2403.10444, algorithm 2): the longest prefix whose own coin accepts it, so that
    coins behind a failed one count too."""

    guarantee, kinds, branching = Guarantee.EXACT, frozenset({Drawn.IID}), False
    needs = Needs(draft_law=True)

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        b, n = tree.shape
        rows, probs = torch.arange(b), target.p.probs
        laws = probs if tree.laws is None else tree.laws
        coins = draws.uniform(Purpose.ACCEPT, torch.arange(n).expand(b, n))
        weight = kept = torch.ones(b, dtype=probs.dtype)
        end = torch.zeros(b, dtype=torch.int64)
        for i in range(1, n):
            x = tree.tokens[:, i]
            weight = (weight * probs[rows, i - 1, x] / laws[rows, i - 1, x]).clamp(max=1)
            accept = weight
            if i < n - 1:
                more = (weight[:, None] * probs[:, i] - laws[:, i]).clamp(min=0).sum(1)
                accept = more / (more + 1 - weight)
            stands = coins[:, i] < accept.nan_to_num(1.0)
            end, kept = torch.where(stands, i, end), torch.where(stands, weight, kept)
        whole = (end == n - 1)[:, None]
        q = laws[rows, end.clamp(max=max(n - 2, 0))]
        rest = torch.where(whole, probs[rows, end], (kept[:, None] * probs[rows, end] - q).clamp(min=0))
        bonus = inverse_cdf(rest, draws.uniform(Purpose.RESIDUAL, end))
        return Verdict(chain_path(tree, end + 1), end + 1, bonus)


class NoResidual(ReusedCoins):
    """A rule that draws from p itself behind a rejected token."""

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        verdict = self.rule.verify(tree, target, draws)
        end = verdict.path.gather(1, verdict.count[:, None] - 1).squeeze(1)
        law = target.p.probs[torch.arange(len(end)), end]
        return replace(verdict, bonus=inverse_cdf(law, draws.uniform(Purpose.RESIDUAL, end)))
