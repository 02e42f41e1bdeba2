"""The default store: dense keys and values, one slot per token, rows side by side.

All planes (keys or values of one layer) of one shape share one tensor ``f[P,R,H,S,D]`` (P planes, R rows, H heads),
so that committing a path is one gather and one scatter for the whole model and not two per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outrider.cache.base import KVStore
from outrider.errors import CacheFull


@dataclass(frozen=True)
class PlaneShape:
    """One plane as the model writes it: heads, width per head, element type."""

    heads: int
    width: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return self.heads * self.width * self.dtype.itemsize


LayerShapes = dict[int, tuple[PlaneShape, PlaneShape]]
"""Layer index -> shapes of its keys and values."""

_GROW = 256  # slots; a multiple of every vector width, small beside a prompt


@dataclass
class _Write:
    """Where the block of the running forward goes."""

    rows: dict[PlaneShape, tuple[Tensor, ...]]  # per plane: the rows so far, f[B,H,S,D]
    fresh: dict[PlaneShape, tuple[Tensor, ...]] | None  # per plane: the new slots, f[B,H,N,D], when rows agree
    index: tuple[Tensor, Tensor] | None  # (rows i64[B,1], slots i64[B,N]) when they do not


class SlotStore(KVStore):
    """See ``KVStore``. Memory is allocated as rows and slots are needed, up to the limits."""

    branching = True

    def __init__(self, shapes: LayerShapes, device: torch.device, max_rows: int, max_slots: int) -> None:
        self.device, self.max_rows, self.max_slots = device, max_rows, max_slots
        self.rows = 0
        self.lengths: list[int] = []
        self.next_positions: list[int] = []
        groups: dict[PlaneShape, int] = {}
        self._plane: dict[tuple[int, int], tuple[PlaneShape, int]] = {}
        for layer, pair in shapes.items():
            for which, shape in enumerate(pair):
                self._plane[layer, which] = (shape, groups.get(shape, 0))
                groups[shape] = groups.get(shape, 0) + 1
        self._groups = groups
        self._buffers: dict[PlaneShape, Tensor] = {}
        self._write: _Write | None = None

    @property
    def capacity(self) -> tuple[int, int]:
        """Rows and slots allocated at present."""
        if not self._buffers:
            return 0, 0
        buffer = next(iter(self._buffers.values()))
        return buffer.shape[1], buffer.shape[3]

    # -- rows ---------------------------------------------------------------------------------------------

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
        return first

    def fork(self, row: int) -> int:
        self._grow(self.rows + 1, self.lengths[row])  # may run out of memory: before anything changes
        clone = self.add()
        for buffer in self._buffers.values():
            buffer[:, clone, :, : self.lengths[row]] = buffer[:, row, :, : self.lengths[row]]
        self.lengths[clone] = self.lengths[row]
        self.next_positions[clone] = self.next_positions[row]
        return clone

    def free(self, row: int) -> None:
        last = self.rows - 1
        if row != last:
            if self.lengths[last]:  # rows that never held anything may have no place yet
                for buffer in self._buffers.values():
                    buffer[:, row, :, : self.lengths[last]] = buffer[:, last, :, : self.lengths[last]]
            self.lengths[row] = self.lengths[last]
            self.next_positions[row] = self.next_positions[last]
        self.lengths.pop()
        self.next_positions.pop()
        self.rows = last

    # -- one forward --------------------------------------------------------------------------------------

    def reserve(self, first_row: int, batch: int, n: int, offset: int = 0) -> None:
        lengths = [length + offset for length in self.lengths[first_row : first_row + batch]]
        stop = max(lengths) + n
        if stop > self.max_slots:
            raise CacheFull(
                f"{stop} tokens in one row, but the store holds {self.max_slots}",
                hint="Shorten the prompt, lower max_tokens, or raise max_context.",
            )
        self._grow(first_row + batch, stop)
        start, index = lengths[0], None
        if any(length != start for length in lengths):
            first = torch.tensor(lengths, device=self.device)[:, None]
            rows = torch.arange(batch, device=self.device)[:, None]
            index = (rows, first + torch.arange(n, device=self.device))
        # Views of all planes at once: two tensor calls for the model and not four for every layer.
        span = slice(first_row, first_row + batch)
        whole = {shape: buffer[:, span, :, :stop].unbind(0) for shape, buffer in self._buffers.items()}
        fresh = None
        if index is None:
            fresh = {shape: buffer[:, span, :, start:stop].unbind(0) for shape, buffer in self._buffers.items()}
        self._write = _Write(whole, fresh, index)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the block's ``keys``/``values`` f[B,H,N,D] of one layer; returns those of the whole rows so far,
        f[B,H,S,D] (views: nothing is copied)."""
        return self._put(layer, 0, keys), self._put(layer, 1, values)

    def _put(self, layer: int, which: int, new: Tensor) -> Tensor:
        write = self._write
        assert write is not None, "reserve() comes before write()"
        shape, plane = self._plane[layer, which]
        rows = write.rows[shape][plane]
        if write.fresh is not None:
            write.fresh[shape][plane].copy_(new)
        else:
            places, slots = write.index  # type: ignore[misc]
            rows[places, :, slots] = new.transpose(1, 2)
        return rows

    def extend(self, first_row: int, counts: Sequence[int]) -> None:
        for offset, count in enumerate(counts):
            self.lengths[first_row + offset] += count
            self.next_positions[first_row + offset] += count

    def commit(self, path: Tensor, counts: Sequence[int]) -> None:
        self._compact(path, counts)
        self.extend(0, counts)

    def _compact(self, path: Tensor, counts: Sequence[int]) -> None:
        """Move accepted nodes together: path[b,i] -> i, behind each row's past."""
        hosted = path.tolist() if path.device.type == "cpu" else None
        if hosted is not None:
            moves = [
                (row, self.lengths[row] + node, self.lengths[row] + place)
                for row, nodes in enumerate(hosted)
                for place, node in enumerate(nodes[: counts[row]])
                if node != place
            ]
            if not moves:
                return
            rows, source, target = (torch.tensor(x) for x in zip(*moves, strict=True))
        else:  # no look at the device: move every node of the path, those already in place included
            first = torch.tensor(self.lengths, device=self.device)[:, None]
            width = path.shape[1]
            place = torch.arange(width, device=self.device)
            rows = torch.arange(self.rows, device=self.device)[:, None].expand(-1, width)
            source, target = first + torch.where(path >= 0, path, place), first + place
            keep = target < self.capacity[1]
            target = torch.where(keep, target, first)
            source = torch.where(keep, source, first)
        for buffer in self._buffers.values():
            buffer[:, rows, :, target] = buffer[:, rows, :, source]

    def rewind(self, lengths: Sequence[int]) -> None:
        for row, length in enumerate(lengths):
            if not 0 <= length <= self.lengths[row]:
                raise ValueError(f"row {row} holds {self.lengths[row]} tokens and cannot be rewound to {length}")
            self.next_positions[row] -= self.lengths[row] - length
            self.lengths[row] = length

    def wipe(self, row: int) -> None:
        for buffer in self._buffers.values():
            buffer[:, row : row + 1] = 0

    def park(self, row: int) -> dict[PlaneShape, Tensor]:
        length = self.lengths[row]
        return {shape: buffer[:, row, :, :length].clone() for shape, buffer in self._buffers.items()}

    def adopt(self, row: int, parked: dict[PlaneShape, Tensor], length: int) -> None:
        assert self.lengths[row] == 0, "only an empty row can adopt a prefix"
        self.reserve(row, 1, length)
        for shape, planes in parked.items():
            self._buffers[shape][:, row, :, :length] = planes[:, :, :length]
        self.extend(row, [length])

    # -- memory -------------------------------------------------------------------------------------------

    def _grow(self, rows: int, slots: int) -> None:
        have_rows, have_slots = self.capacity
        if rows <= have_rows and slots <= have_slots:
            return
        if rows > have_rows:
            rows = min(max(rows, 2 * have_rows), self.max_rows)
        if slots > have_slots:
            slots = min(max(-(-slots // _GROW) * _GROW, have_slots * 3 // 2), self.max_slots)
        rows, slots = max(rows, have_rows), max(slots, have_slots)
        for shape, planes in self._groups.items():
            # Zeros, not empty: a masked slot still takes part in 0 * value, and 0 * NaN would be NaN.
            size = (planes, rows, shape.heads, slots, shape.width)
            bigger = torch.zeros(size, dtype=shape.dtype, device=self.device)
            if shape in self._buffers:
                bigger[:, :have_rows, :, :have_slots] = self._buffers[shape]
            self._buffers[shape] = bigger
