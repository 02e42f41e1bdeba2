"""Token recycling: what the target once ranked highest after a token is drafted after it the next time.

Luo et al., "Turning Trash into Treasure" (arXiv 2408.08696).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outrider.draft.base import DraftContext, Drafter
from outrider.errors import ConfigError
from outrider.rng import Draws
from outrider.tree.static import StaticTree, token_recycling_tree
from outrider.types import PADDING, ROOT, Budget, DraftTree, Needs, Outcome

if TYPE_CHECKING:
    from outrider.run.row import Row

_CHUNK = 64
"""Columns whose maximum is taken first in ``top_tokens`` (16 to 512 were tried)."""


def top_tokens(logits: Tensor, k: int) -> Tensor:
    """i64[M,k]: the ``k`` highest tokens of each row of ``logits`` f[M,V], best first. Exact.

    On a CPU, ``torch.topk`` over a large vocabulary is three times slower than first taking the maximum of
    every chunk: the k highest tokens lie in the k chunks of the highest maxima.
    """
    m, v = logits.shape
    chunks = v // _CHUNK
    if logits.device.type != "cpu" or chunks < 4 * k:
        return logits.topk(k, dim=-1).indices
    # Neighbouring columns make a chunk in float32; in bfloat16 the maximum is only fast down the columns.
    if logits.dtype == torch.float32:
        best = logits[:, : chunks * _CHUNK].reshape(m, chunks, _CHUNK).amax(-1).topk(k, dim=-1).indices
        columns = (best[:, :, None] * _CHUNK + torch.arange(_CHUNK)).view(m, -1)
    else:
        best = logits[:, : chunks * _CHUNK].reshape(m, _CHUNK, chunks).amax(1).topk(k, dim=-1).indices
        columns = (best[:, :, None] + torch.arange(_CHUNK) * chunks).view(m, -1)
    if chunks * _CHUNK < v:  # the columns that fill no chunk are always looked at
        columns = torch.cat([columns, torch.arange(chunks * _CHUNK, v).expand(m, -1)], dim=1)
    return columns.gather(1, logits.gather(1, columns).topk(k, dim=-1).indices)


class TokenRecycling(Drafter):
    """Fills a template tree from a matrix that holds, per token, the ``k`` successors last ranked highest.

    Every node of every verified tree teaches, the rejected ones too: its row becomes the top k of its logits.
    Where a token stands at several nodes the last one counts (rows in batch order, then nodes in tree order).
    A token that was never a node has no children: nothing is drafted below it, whereas the published code
    fills in token 0. The same holds for end-of-text tokens, behind which nothing is emitted.

    The matrix i64[V,k] lives as long as the drafter and learns across requests, as published;
    ``scope="request"`` clears it whenever no request is left. ``learn_prefill`` also learns from the logits
    of prompt tokens (one head product per prompt token). ``seed_from_prompt`` enters, for tokens never seen,
    the token that followed in a prompt; both are off as published."""

    needs = Needs(logits=True)
    branching = True

    def __init__(
        self,
        k: int = 8,
        tree: StaticTree | None = None,
        scope: str = "engine",
        learn_prefill: bool = False,
        seed_from_prompt: bool = False,
        name: str = "token-recycling",
    ) -> None:
        self.tree = token_recycling_tree() if tree is None else tree
        if scope not in ("engine", "request"):
            raise ConfigError(f"scope={scope!r} is unknown", hint="Known: 'engine', 'request'")
        if tree is None and k < 8:
            self.tree = self.tree.fit(Budget(self.tree.depth, self.tree.size, k))
        if max(self.tree.ranks) >= k:
            raise ConfigError(
                f"k={k} successors are kept per token, but the tree asks for {max(self.tree.ranks) + 1}",
                hint="Raise k or give a tree with lower ranks",
            )
        self.k, self.scope, self.name = k, scope, name
        self.learn_prefill, self.seed_from_prompt = learn_prefill, seed_from_prompt
        if learn_prefill:
            self.needs = Needs(logits=True, prefill_logits=True)
        self._active: set[int] = set()

    def bind(self, context: DraftContext) -> None:
        """One matrix row per token, and a last one that stays empty."""
        if context.vocab_size < self.k:
            raise ConfigError(f"k={self.k} is more than the vocabulary of {context.vocab_size} tokens", hint="Lower k")
        self._vocab = context.vocab_size
        self.matrix = torch.full((context.vocab_size + 1, self.k), -1, dtype=torch.int64, device=context.device)
        """Successors per token, best first; -1: not seen. Row V is the target of writes that do not count."""
        self._fitted = lru_cache(maxsize=16)(self._fit)
        self._never = torch.tensor([*sorted(context.stop_tokens), self._vocab], device=context.device)

    @property
    def seen(self) -> Tensor:
        """b[V]: tokens that have successors."""
        return self.matrix[: self._vocab, 0] >= 0

    def admit(self, row: Row) -> None:
        self._active.add(row.id)
        if self.seed_from_prompt and len(row.tokens) > 1:
            tokens = torch.tensor(row.tokens, device=self.matrix.device)
            token, follower = tokens[:-1], tokens[1:]
            where = _last_occurrence(torch.where(self.matrix[token, 0] < 0, token, self._vocab), self._vocab)
            self.matrix[where, 0] = follower
            self.matrix[self._never] = -1

    def _fit(self, depth: int, nodes: int, width: int) -> tuple[StaticTree, list[tuple[Tensor, Tensor]], Tensor]:
        """The template within a budget; per level (places of the parents in the level above, ranks);
        all parents i64[1,N]."""
        tree = self.tree.fit(Budget(depth, nodes, width))
        device = self.matrix.device
        parents = torch.tensor(tree.parents, device=device)
        ranks = torch.tensor(tree.ranks, device=device)
        levels = [
            (parents[level.start : level.stop] - above.start, ranks[level.start : level.stop])
            for above, level in pairwise(tree.levels)
        ]
        return tree, levels, parents[None]

    def propose(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        device = self.matrix.device
        roots = torch.tensor([row.tokens[-1] for row in rows], device=device)[:, None]
        tree, levels, parents = self._fitted(budget.depth, budget.nodes, budget.width)
        last, filled = roots, [roots]
        for above, ranks in levels:
            # A missing parent is token -1, and row -1 of the matrix is the one that stays empty.
            last = self.matrix[last[:, above], ranks]
            filled.append(last)
        tokens = torch.cat(filled, dim=1)
        if device.type == "cpu":
            return self._known(tokens, tree, parents)
        # Nothing may wait for an accelerator: the padding stays.
        tokens, parents = close_gaps(tokens, parents.expand(tokens.shape), tokens >= 0)
        origins = ("target", self.name)
        return DraftTree(tokens, parents, tree.depth, tree.width, origins=origins)

    def _known(self, tokens: Tensor, tree: StaticTree, parents: Tensor) -> DraftTree:
        """The tree on the host: without the nodes that no row has, and with its lists."""
        above, host = list(tree.parents), []
        lines = tokens.tolist()
        for line in lines:
            if -1 not in line:
                host.append((line, above.copy()))
                continue
            place, kept_tokens, kept_parents = [-1] * len(line), list[int](), list[int]()
            for node, token in enumerate(line):
                if token >= 0:
                    place[node] = len(kept_tokens)
                    kept_tokens.append(token)
                    kept_parents.append(place[above[node]] if node else ROOT)
            host.append((kept_tokens, kept_parents))
        if any(len(kept) < len(line) for (kept, _), line in zip(host, lines, strict=True)):
            return DraftTree.build(host, origin=self.name)
        return DraftTree(
            tokens=tokens,
            parents=parents.expand(tokens.shape).contiguous(),
            depth_bound=tree.depth,
            width_bound=tree.width,
            origins=("target", self.name),
            host=host,
        )

    def observe(self, outcome: Outcome) -> None:
        logits, tree = outcome.logits, outcome.tree
        if logits is None or logits.shape[1] != tree.shape[1]:
            return  # a prefill chunk without logits
        if outcome.verdict is None and not self.learn_prefill:
            return
        token = torch.where(tree.real, tree.tokens, self._vocab).reshape(-1).to(self.matrix.device)
        where = _last_occurrence(token, self._vocab)
        flat = logits.reshape(-1, logits.shape[-1])[:, : self._vocab]
        # Also for rows that are not written: copying the others together costs more than their top k.
        self.matrix[where] = top_tokens(flat, self.k).to(self.matrix.device)
        self.matrix[self._never] = -1

    def drop(self, row: Row) -> None:
        self._active.discard(row.id)
        if self.scope == "request" and not self._active:
            self.matrix.fill_(-1)

    def fork(self, row: Row, clone: Row) -> None:
        self._active.add(clone.id)


def _last_occurrence(keys: Tensor, nowhere: int) -> Tensor:
    """``keys`` i64[M] with all but the last of equal ones replaced by ``nowhere``: scattering to equal places
    has no defined order on a GPU."""
    ordered, index = keys.sort(stable=True)
    repeated = torch.zeros_like(keys, dtype=torch.bool)
    repeated[:-1] = ordered[:-1] == ordered[1:]
    return torch.where(torch.empty_like(repeated).scatter_(0, index, repeated), nowhere, keys)


def close_gaps(tokens: Tensor, parents: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Move the ``real`` b[B,N] nodes of each row to its front, in order; ``parents`` i64[B,N] as before.

    Returns tokens and parents i64[B,N], the padding behind. The parent of a real node must be real.
    """
    place = real.cumsum(1) - 1  # of a real node
    order = (~real).sort(dim=1, stable=True).indices
    counts = place[:, -1] + 1
    tokens = tokens.gather(1, order)
    parents = parents.gather(1, order)
    parents = torch.where(parents < 0, parents, place.gather(1, parents.clamp(min=0)))
    behind = torch.arange(tokens.shape[1], device=tokens.device) >= counts[:, None]
    return tokens.masked_fill(behind, 0), parents.masked_fill(behind, PADDING)
