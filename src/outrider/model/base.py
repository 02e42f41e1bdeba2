"""The one forward call that everything else stands on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from outrider.types import PADDING, ROOT, DraftTree

if TYPE_CHECKING:
    from outrider.cache.base import KVStore


@dataclass
class Block:
    """New tokens of B rows for one forward: a draft tree, or a chunk of prompt (a chain).

    ``ancestors`` b[B,N,offset+N] says which nodes each new token sees (itself included); None means a causal
    chain. Every token sees the whole stored past of its row. ``counts`` are the real tokens per row; padding
    stands behind them, is computed along and never seen.
    """

    tokens: Tensor  # i64[B,N]
    counts: list[int]
    depth: Tensor | None = None  # i64[B,N]; None: offset, offset + 1, ...
    ancestors: Tensor | None = None  # b[B,N,offset+N]
    offset: int = 0
    """Nodes of the same, still growing tree that earlier forwards wrote behind the stored past."""
    earlier: Tensor | None = None
    """i64[B,offset]: the depth of those nodes (only windows need it); given whenever ``depth`` and ``offset`` are."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.tokens.shape[0], self.tokens.shape[1]

    @cached_property
    def is_padded(self) -> bool:
        return min(self.counts) < self.tokens.shape[1]

    @classmethod
    def of_tree(cls, tree: DraftTree, device: torch.device | str | None = None) -> Block:
        """The block that verifies ``tree``."""
        n = tree.shape[1]
        if tree.host is not None:
            counts = [len(tokens) for tokens, _ in tree.host]
        else:
            counts = tree.real.sum(-1).tolist() if n > 1 else [1] * tree.shape[0]
        chain = tree.is_chain
        block = cls(
            tokens=tree.tokens,
            counts=counts,
            depth=None if chain else tree.depth,
            ancestors=None if chain else tree.ancestors,
        )
        return block if device is None else block.to(device)

    @classmethod
    def of_lists(cls, rows: list[list[int]], device: torch.device | str = "cpu") -> Block:
        """A chain per row, padded behind."""
        n = max(len(row) for row in rows)
        tokens = torch.tensor([row + [0] * (n - len(row)) for row in rows], dtype=torch.int64, device=device)
        return cls(tokens=tokens, counts=[len(row) for row in rows])

    def behind(self, prompt: list[int]) -> Block:
        """The same block of one row, with ``prompt`` tokens that are not stored yet read before it."""
        p, n = len(prompt), self.shape[1]
        device = self.tokens.device
        tokens = torch.cat([torch.tensor([prompt], device=device), self.tokens], dim=1)
        if self.ancestors is None:
            return Block(tokens, [p + self.counts[0]])
        assert self.depth is not None
        seen = torch.ones(1, p + n, p + n, dtype=torch.bool, device=device).tril()
        seen[:, p:, p:] = self.ancestors
        depth = torch.cat([torch.arange(p, device=device)[None], self.depth + p], dim=1)
        return Block(tokens, [p + self.counts[0]], depth, seen)

    def to(self, device: torch.device | str) -> Block:
        if self.tokens.device == torch.device(device):
            return self
        return Block(
            self.tokens.to(device),
            self.counts,
            None if self.depth is None else self.depth.to(device),
            None if self.ancestors is None else self.ancestors.to(device),
            self.offset,
            None if self.earlier is None else self.earlier.to(device),
        )

    def as_tree(self) -> DraftTree:
        """The chain as a ``DraftTree`` (what ``observe`` sees of a prefill chunk)."""
        b, n = self.shape
        index = torch.arange(n).expand(b, n)
        counts = torch.tensor(self.counts)[:, None]
        parents = torch.where(index < counts, index - 1, PADDING)
        parents[:, 0] = ROOT
        return DraftTree(tokens=self.tokens, parents=parents.to(self.tokens.device), depth_bound=n - 1)


@dataclass
class ModelOutput:
    """``logits`` f[B,N,V] (N = 0 where none were asked for), ``hidden`` f[B,N,C,D] for the captured layers."""

    logits: Tensor
    hidden: Tensor | None = None


class LanguageModel(ABC):
    """A causal language model that scores a block of new tokens against stored keys and values.

    The model holds no state: keys and values live in the ``KVStore`` it was given, which only ``commit`` and
    ``rewind`` make longer or shorter. ``forward`` writes the block's keys and values behind the stored past,
    where they stay until the next forward of the same rows overwrites them or ``commit`` keeps some.
    """

    name: str
    vocab_size: int
    max_positions: int | None
    """Longest context in tokens, None when the model has no limit of its own."""
    device: torch.device
    dtype: torch.dtype
    branching: bool
    """Whether its store can hold a tree (recurrent layers cannot)."""
    weights_version: int = 0
    scores_last: bool = False
    """Whether ``forward`` can score the last tokens of a block alone (a number as ``logits``), so that the end of a
    prompt is read along with the first draft."""

    @abstractmethod
    def new_store(self, max_rows: int, max_slots: int) -> KVStore:
        """An empty store for up to ``max_rows`` rows of up to ``max_slots`` tokens each (allocated as it grows)."""

    @abstractmethod
    def forward(
        self,
        block: Block,
        store: KVStore,
        *,
        first_row: int = 0,
        capture: tuple[int, ...] = (),
        logits: Literal["all", "none"] | int = "all",
    ) -> ModelOutput:
        """Score ``block`` for the store's rows ``first_row .. first_row + B``.

        ``capture`` names layers as in ``Needs.hidden``. ``logits="none"`` skips the head (prefill); a number scores
        that many tokens at the end only, where the model ``scores_last``.
        Raises ``CacheFull`` when the store has no room for N more tokens of some row.
        """
