"""Two models with a structure a drafter can find: one fixed text, and one fixed table of successors."""

from __future__ import annotations

from typing import Literal

import torch

from outrider.cache.base import KVStore
from outrider.model.base import Block, LanguageModel, ModelOutput
from outrider.model.table import TableStore


class ScriptModel(LanguageModel):
    """The token after position i is ``script[i + 1]``, with certainty."""

    name = "script"
    branching = True
    device = torch.device("cpu")
    dtype = torch.float64

    def __init__(self, script: list[int], vocab_size: int) -> None:
        self.script, self.vocab_size = script, vocab_size
        self.max_positions = len(script) - 1

    def new_store(self, max_rows: int, max_slots: int) -> KVStore:
        return TableStore(max_rows, max_slots)

    def forward(
        self,
        block: Block,
        store: KVStore,
        *,
        first_row: int = 0,
        capture: tuple[int, ...] = (),
        logits: Literal["all", "none"] = "all",
    ) -> ModelOutput:
        b, n = block.shape
        store.reserve(first_row, b, n, block.offset)
        depth = torch.arange(n).expand(b, n) if block.depth is None else block.depth
        at = torch.tensor(store.next_positions[first_row : first_row + b])[:, None] + depth
        text = torch.tensor(self.script)
        token = text[(at + 1).clamp(max=len(self.script) - 1)]
        return ModelOutput(torch.nn.functional.one_hot(token, self.vocab_size).double() * 50)


class BigramModel(ScriptModel):
    """The next token depends on the last one alone: what a successor table can learn completely."""

    name = "bigram"

    def __init__(self, vocab_size: int, seed: int) -> None:
        super().__init__([0] * 10_000, vocab_size)
        self.table = torch.randn(vocab_size, vocab_size, generator=torch.Generator().manual_seed(seed))

    def forward(
        self,
        block: Block,
        store: KVStore,
        *,
        first_row: int = 0,
        capture: tuple[int, ...] = (),
        logits: Literal["all", "none"] = "all",
    ) -> ModelOutput:
        store.reserve(first_row, block.shape[0], block.shape[1], block.offset)
        return ModelOutput(self.table[block.tokens])
