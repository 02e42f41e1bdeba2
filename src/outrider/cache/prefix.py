"""Keys and values of finished rows, kept so that a request with the same beginning need not compute them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from outrider.cache.base import KVStore


@dataclass
class _Entry:
    tokens: list[int]
    parked: Any


class PrefixCache:
    """The last ``entries`` finished rows of one store. Entries hold accepted tokens only, never drafts."""

    def __init__(self, store: KVStore, entries: int) -> None:
        self.store, self.limit = store, entries if store.rewindable else 0
        self._entries: list[_Entry] = []

    def keep(self, row: int, tokens: list[int]) -> None:
        """Park ``row``, whose stored tokens are a prefix of ``tokens``."""
        if self.limit and self.store.lengths[row]:
            stored = tokens[: self.store.lengths[row]]
            longer = [e for e in self._entries if e.tokens != stored[: len(e.tokens)]]
            self._entries = [*longer, _Entry(stored, self.store.park(row))][-self.limit :]

    def adopt(self, row: int, tokens: list[int]) -> int:
        """Fill the empty ``row`` with the longest known prefix of ``tokens``; returns its length."""
        best, length = None, 0
        for entry in self._entries:
            common = common_prefix(entry.tokens, tokens)
            if common > length:
                best, length = entry, common
        if best is not None:
            self.store.adopt(row, best.parked, length)
        return length


def common_prefix(left: list[int], right: list[int]) -> int:
    """How many leading tokens two lists share."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))
