"""A language model whose exact law is known: for tests of rules, stores and loops, and for examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

from outrider.cache.base import KVStore
from outrider.errors import CacheFull
from outrider.model.base import Block, LanguageModel, ModelOutput
from outrider.rng import absorb, to_uniform

_Number = TypeVar("_Number", int, Tensor)


class TableStore(KVStore):
    """What attention would find in a slot: a token and the position it was written for.

    All methods are tensor operations over rows, so that 100,000 rows cost what one tensor of that size costs.
    ``commit`` and ``extend`` accept counts as tensors too.
    """

    branching = True

    def __init__(self, max_rows: int, max_slots: int) -> None:
        self.max_rows, self.max_slots, self.rows = max_rows, max_slots, 0
        self.tokens = torch.empty(0, 0, dtype=torch.int64)  # i64[rows,S]
        self.positions = torch.empty(0, 0, dtype=torch.int64)  # i64[rows,S]
        self.length = torch.empty(0, dtype=torch.int64)  # i64[rows]

    @property
    def lengths(self) -> list[int]:  # type: ignore[override]
        return self.length.tolist()

    @property
    def next_positions(self) -> list[int]:  # type: ignore[override]
        return self.length.tolist()

    def add(self, count: int = 1) -> int:
        if self.rows + count > self.max_rows:
            raise CacheFull(
                f"{self.rows + count} rows in a store of {self.max_rows}",
                hint="Raise max_rows, or submit fewer requests at a time.",
            )
        first, self.rows = self.rows, self.rows + count
        self._resize(self.tokens.shape[1])
        return first

    def reserve(self, first_row: int, batch: int, n: int, offset: int = 0) -> None:
        need = int(self.length[first_row : first_row + batch].max()) + offset + n
        if need > self.max_slots:
            raise CacheFull(
                f"{need} tokens in a store of {self.max_slots} slots per row",
                hint="Shorten the prompt, lower max_tokens, or raise max_slots.",
            )
        if need > self.tokens.shape[1]:
            self._resize(need)

    def extend(self, first_row: int, counts: Sequence[int] | Tensor) -> None:
        counts = torch.as_tensor(counts, dtype=torch.int64)
        self.length[first_row : first_row + len(counts)] += counts

    def commit(self, path: Tensor, counts: Sequence[int] | Tensor) -> None:
        # As in a real store, what was written for one position and kept for another is wrong from then on:
        # positions move along with tokens, they are not put right.
        source = self.length[:, None] + path.clamp(min=0)
        target = self.length[:, None] + torch.arange(path.shape[1])
        keep = path >= 0
        rows = torch.arange(self.rows)[:, None].expand_as(path)
        for plane in (self.tokens, self.positions):
            plane[rows[keep], target[keep]] = plane[rows, source][keep]
        self.length += torch.as_tensor(counts, dtype=torch.int64)

    def rewind(self, lengths: Sequence[int] | Tensor) -> None:
        self.length.copy_(torch.minimum(self.length, torch.as_tensor(lengths, dtype=torch.int64)))

    def fork(self, row: int) -> int:
        clone = self.add()
        self._copy(row, clone)
        return clone

    def free(self, row: int) -> None:
        self.rows -= 1
        self._copy(self.rows, row)
        self._resize(self.tokens.shape[1])

    def park(self, row: int) -> tuple[Tensor, Tensor]:
        kept = int(self.length[row])
        return self.tokens[row, :kept].clone(), self.positions[row, :kept].clone()

    def adopt(self, row: int, parked: tuple[Tensor, Tensor], length: int) -> None:
        self.reserve(row, 1, length)
        self.tokens[row, :length], self.positions[row, :length] = (plane[:length] for plane in parked)
        self.length[row] = length

    def _copy(self, source: int, target: int) -> None:
        for plane in (self.tokens, self.positions, self.length):
            plane[target] = plane[source]

    def _resize(self, slots: int) -> None:
        """Give every plane ``rows`` rows and ``slots`` slots; what is new is marked as never written (-1)."""
        rows, kept = self.rows, min(self.rows, self.tokens.shape[0])
        width = self.tokens.shape[1]
        for name in ("tokens", "positions"):
            plane = torch.full((rows, slots), -1, dtype=torch.int64)
            plane[:kept, :width] = getattr(self, name)[:kept]
            setattr(self, name, plane)
        length = torch.zeros(rows, dtype=torch.int64)
        length[:kept] = self.length[:kept]
        self.length = length


class TableModel(LanguageModel):
    """The next token's law depends on the last token, and on a hash of all visible tokens and their
    positions.

    The hash is ``sum((position mod (modulus-1) + 1) * (token + 1)) mod modulus`` (modulus a prime above the
    vocabulary, so that no token and no weight vanishes): a wrong mask, a wrong commit, a stale slot or a
    shifted position changes the law. Logits are f64; a captured layer is the logits themselves (D = V).
    """

    branching = True

    def __init__(
        self,
        vocab_size: int = 5,
        *,
        seed: int = 0,
        modulus: int = 13,
        sharpness: float = 1.5,
        name: str = "table",
    ) -> None:
        """``sharpness`` scales the standard Gumbel noise that the logits are made of."""
        self.name, self.vocab_size, self.modulus = name, vocab_size, modulus
        self.max_positions: int | None = None
        self.device, self.dtype = torch.device("cpu"), torch.float64
        self.table = sharpness * _gumbel(seed, (modulus, vocab_size, vocab_size))  # f64[hash, last token, V]

    def near(self, distance: float, seed: int) -> TableModel:
        """A drafter for this model: the same table with noise of size ``distance`` added."""
        other = TableModel(self.vocab_size, modulus=self.modulus, name=f"{self.name}-near")
        other.table = self.table + distance * _gumbel(seed, tuple(self.table.shape))
        return other

    def law(self, prefix: Sequence[int]) -> Tensor:
        """f64[V]: the exact next-token law at temperature 1 after ``prefix`` (at least one token)."""
        total = sum(_weight(i, self.modulus) * (token + 1) for i, token in enumerate(prefix))
        return self.table[total % self.modulus, prefix[-1]].softmax(-1)

    def new_store(self, max_rows: int, max_slots: int) -> TableStore:
        return TableStore(max_rows, max_slots)

    def forward(
        self,
        block: Block,
        store: KVStore,
        *,
        first_row: int = 0,
        capture: tuple[int, ...] = (),
        logits: Literal["all", "none"] | int = "all",
    ) -> ModelOutput:
        """See ``LanguageModel``. Sees nothing but what the store's slots hold where the mask allows."""
        if not isinstance(store, TableStore):
            raise TypeError(f"TableModel reads a TableStore, not a {type(store).__name__}")
        (b, n), grown = block.shape, block.offset
        store.reserve(first_row, b, n, grown)
        some = slice(first_row, first_row + b)
        past = store.length[some]  # i64[B]
        depth = grown + torch.arange(n).expand(b, n) if block.depth is None else block.depth
        tree = past[:, None] + torch.arange(grown + n)  # slots of this tree's nodes, earlier levels included
        slots = tree[:, grown:]
        store.tokens[some].scatter_(1, slots, block.tokens)
        store.positions[some].scatter_(1, slots, past[:, None] + depth)

        tokens, positions = store.tokens[some], store.positions[some]
        value = _weight(positions, self.modulus) * (tokens + 1)  # i64[B,S]; 0 where never written
        stored = torch.arange(tokens.shape[1]) < past[:, None]
        drafted = value.gather(1, tree)
        if block.ancestors is None:
            seen = drafted.cumsum(1)[:, grown:]
        else:
            seen = (block.ancestors * drafted[:, None, :]).sum(2)
        key = ((value * stored).sum(1, keepdim=True) + seen) % self.modulus
        answer = self.table[key, tokens.gather(1, slots)]
        hidden = answer[:, :, None].expand(b, n, len(capture), -1) if capture else None
        return ModelOutput(answer if logits == "all" else answer[:, :0], hidden)


def _weight(position: _Number, modulus: int) -> _Number:
    return position % (modulus - 1) + 1


def _gumbel(seed: int, shape: tuple[int, ...]) -> Tensor:
    """f64[shape] standard Gumbel noise from a seed."""
    count = torch.Size(shape).numel()
    u = to_uniform(absorb(absorb(torch.zeros(count, dtype=torch.int64), seed), torch.arange(count)))
    return -torch.log(-torch.log(u.clamp(min=2.0**-54))).view(shape)
