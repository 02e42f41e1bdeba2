"""The contract of a key/value store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor


class KVStore(ABC):
    """Stored keys and values of the active rows 0 .. ``rows``-1.

    ``lengths`` are the stored tokens per row, ``next_positions`` the position the next token takes (they differ
    only where the past was shortened). A forward of N new tokens writes slots ``lengths[b] .. lengths[b]+N-1``;
    ``commit`` keeps those on the accepted path, in order, and forgets the rest. Rows are always dense: when one
    leaves, the last row takes its place (``free`` says which).
    """

    branching: bool
    """Whether several nodes may share a parent within one block."""
    rewindable: bool = True
    """Whether ``rewind`` can go back to any length, and ``park``/``adopt`` can hand prefixes on."""
    max_slots: int
    rows: int
    lengths: list[int]
    next_positions: list[int]

    @abstractmethod
    def add(self, count: int = 1) -> int:
        """Activate ``count`` empty rows behind the present ones; returns the index of the first."""

    @abstractmethod
    def reserve(self, first_row: int, batch: int, n: int, offset: int = 0) -> None:
        """Make room for ``n`` more tokens in each of these rows, ``offset`` slots behind the stored past (earlier
        levels of a draft that is still growing). Raises ``CacheFull``."""

    @abstractmethod
    def extend(self, first_row: int, counts: Sequence[int]) -> None:
        """Keep the first ``counts[i]`` tokens of the last block of row ``first_row + i`` (prefill)."""

    @abstractmethod
    def commit(self, path: Tensor, counts: Sequence[int]) -> None:
        """Keep, in every row, the ``counts`` first slots named by ``path`` i64[B,A] (counted from the end of the
        stored past, so node indices of the last block; -1 behind ``counts``), and forget the rest."""

    @abstractmethod
    def rewind(self, lengths: Sequence[int]) -> None:
        """Shorten rows to ``lengths`` (each at most the present one)."""

    @abstractmethod
    def fork(self, row: int) -> int:
        """Activate a copy of ``row``; returns its index."""

    @abstractmethod
    def free(self, row: int) -> None:
        """Deactivate ``row``; the last row moves to its place."""

    def wipe(self, row: int) -> None:
        """Overwrite what ``row`` holds, where stale values could reach a later row."""

    def park(self, row: int) -> Any:
        """A copy of the stored part of ``row`` that outlives it."""
        raise NotImplementedError

    def adopt(self, row: int, parked: Any, length: int) -> None:
        """Fill the empty ``row`` with the first ``length`` tokens of what ``park`` returned."""
        raise NotImplementedError
