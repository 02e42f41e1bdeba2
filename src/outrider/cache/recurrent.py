"""A store for models whose layers keep a running state: snapshot, then replay what was accepted.

A state cannot be taken back token by token, and padding would enter it, so every row has a cache of its own
and rows run one by one. ``marks`` are snapshots on the way through a block; ``commit`` goes back to the last
one that is not beyond the accepted tokens and leaves the rest of those *pending*: they are fed again with the
next block, so that a replay costs tokens and not a forward.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from outrider.cache.base import KVStore
from outrider.errors import CacheFull, ConfigError, IncompatibleParts

if TYPE_CHECKING:
    from transformers.cache_utils import Cache


def snapshot(cache: Cache) -> Cache:
    """A copy that later forwards of ``cache`` do not touch.

    Running states are updated in place and cloned. Keys and values grow by concatenation into new tensors, so
    the present ones are shared.
    """
    clone = copy.copy(cache)
    clone.layers = [_layer(layer) for layer in cache.layers]
    return clone


def _layer(layer: Any) -> Any:
    clone = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(clone, name, {k: v.clone() if isinstance(v, Tensor) else v for k, v in value.items()})
        elif isinstance(value, Tensor) and name not in {"keys", "values"}:
            setattr(clone, name, value.clone())
    return clone


@dataclass
class RecurrentRow:
    """One row. ``cache`` has seen all committed tokens but ``pending``; behind a ``block``, those too."""

    cache: Cache
    pending: list[int] = field(default_factory=list)
    block: list[int] = field(default_factory=list)
    """Tokens of the running block, not committed yet."""
    marks: dict[int, Cache] = field(default_factory=dict)
    """State after so many tokens of ``pending + block``."""

    def settle(self, accepted: int) -> None:
        """Keep the first ``accepted`` tokens of the block."""
        fed = self.pending + self.block
        keep = len(self.pending) + accepted
        if self.block and keep < len(fed):
            at = max((mark for mark in self.marks if mark <= keep), default=None)
            if at is None:
                raise ConfigError(
                    f"{accepted} of {len(self.block)} tokens were kept, but no earlier state was saved",
                    hint="Give blocks of more than one token, or keep the whole block.",
                )
            self.cache, self.pending = self.marks[at], fed[at:keep]
        elif self.block:
            self.pending = []
        self.block, self.marks = [], {}

    def copied(self) -> RecurrentRow:
        return RecurrentRow(snapshot(self.cache), list(self.pending))


class RecurrentStore(KVStore):
    """See ``KVStore``: chains only, and ``rewind`` reaches the start, the present, or a pending token."""

    branching = False
    rewindable = False

    def __init__(self, new_cache: Callable[[], Cache], max_rows: int, max_slots: int) -> None:
        self._new_cache, self.max_rows, self.max_slots = new_cache, max_rows, max_slots
        self.rows = 0
        self.lengths: list[int] = []
        self.next_positions: list[int] = []
        self.states: list[RecurrentRow] = []

    def add(self, count: int = 1) -> int:
        if self.rows + count > self.max_rows:
            raise CacheFull(
                f"{self.rows + count} rows at once, but the store was built for {self.max_rows}",
                hint="Raise max_rows, or submit fewer requests at a time.",
            )
        first = self.rows
        self.rows += count
        self.lengths += [0] * count
        self.next_positions += [0] * count
        self.states += [RecurrentRow(self._new_cache()) for _ in range(count)]
        return first

    def fork(self, row: int) -> int:
        clone = self.add()
        self.states[row].settle(0)
        self.states[clone] = self.states[row].copied()
        self.lengths[clone], self.next_positions[clone] = self.lengths[row], self.next_positions[row]
        return clone

    def free(self, row: int) -> None:
        state, length, position = self.states.pop(), self.lengths.pop(), self.next_positions.pop()
        if row < len(self.states):
            self.states[row], self.lengths[row], self.next_positions[row] = state, length, position
        self.rows -= 1

    def reserve(self, first_row: int, batch: int, n: int, offset: int = 0) -> None:
        if offset:
            raise IncompatibleParts(
                "a draft that grows level by level needs a store that can branch",
                why="a recurrent state cannot be taken back token by token while it drafts",
                hint="Draft with an attention model.",
            )
        stop = max(self.lengths[first_row : first_row + batch]) + n
        if stop > self.max_slots:
            raise CacheFull(
                f"{stop} tokens in one row, but the store holds {self.max_slots}",
                hint="Shorten the prompt, lower max_tokens, or raise max_context.",
            )

    def extend(self, first_row: int, counts: Sequence[int]) -> None:
        for row, count in enumerate(counts, start=first_row):
            self.states[row].settle(count)
            self.lengths[row] += count
            self.next_positions[row] += count

    def commit(self, path: Tensor, counts: Sequence[int]) -> None:
        chain = torch.arange(path.shape[1], device=path.device)
        assert bool(((path == chain) | (path < 0)).all()), "a path through a chain is its beginning"
        self.extend(0, counts)

    def rewind(self, lengths: Sequence[int]) -> None:
        for row, length in enumerate(lengths):
            state, have = self.states[row], self.lengths[row]
            if not 0 <= length <= have:
                raise ValueError(f"row {row} holds {have} tokens and cannot be rewound to {length}")
            state.settle(0)
            if length == 0:
                self.states[row] = RecurrentRow(self._new_cache())
            elif have - length <= len(state.pending):
                state.pending = state.pending[: len(state.pending) - (have - length)]
            else:
                raise ConfigError(
                    f"row {row} holds {have} tokens and cannot be rewound to {length}",
                    why="A recurrent state has no memory of earlier lengths",
                    hint="Rewind to 0 and feed the tokens again (the store's `rewindable` is False).",
                )
            self.next_positions[row] -= have - length
            self.lengths[row] = length
